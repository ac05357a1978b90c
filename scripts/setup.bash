# Sourced by the other scripts, not run: makes .venv ready and sets the environment.
#
#   set_up    make or refresh .venv: minutes the first time, a second afterwards
#   use_ros   let ROS find this package, and let it carry images
#   $root, $venv   the folders
#
# Where a ROS installation is sourced, its rclpy, numpy and OpenCV are used; elsewhere ROS 2
# comes as wheels: Kilted's, or Jazzy's in .venv-jazzy with TIEKD_ROS_WHEELS=jazzy. $PYTHON names
# another interpreter than python3.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
wheels="${TIEKD_ROS_WHEELS:-kilted}"
venv="$root/.venv"
ros_extra=ros
constraint_files=("$root/constraints.txt")
if [[ "$wheels" == jazzy ]]; then
    venv="$root/.venv-jazzy"
    ros_extra=ros-jazzy
    constraint_files+=("$root/constraints-jazzy.txt")
fi
python="${PYTHON:-python3}"
package_files=(tiekd_ros launch config resource package.xml setup.py setup.cfg pyproject.toml)

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

set_up() {
    check_python
    ros_sourced="$(sourced_ros)"
    check_wheels
    forget_other_environments
    # Runs share the lock until they end, so that none renews $venv under a running test.
    exec 9>"$venv.lock"
    flock --shared 9
    if is_fresh venv && is_fresh package && is_fresh dependencies; then
        return
    fi
    if ! flock --exclusive --nonblock 9; then
        say "waiting for another run in this folder to end ..."
        flock --exclusive 9
    fi
    SECONDS=0
    renew venv
    renew package
    renew dependencies
    say "set up in $SECONDS s"
    flock --shared 9
}

use_ros() {
    export PATH="$venv/bin:$PATH"
    export AMENT_PREFIX_PATH="$venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
    # By default Fast DDS loses most camera images between processes: they do not fit its buffers.
    export FASTDDS_BUILTIN_TRANSPORTS="${FASTDDS_BUILTIN_TRANSPORTS:-LARGE_DATA?max_msg_size=2MB&sockets_size=4MB&non_blocking=true}"
}

# --- steps: each has a key of what it depends on, and is done again when its stamp differs

venv_key() { "$python" -c 'import sys; print(sys.version, sys.prefix, *sys.argv[1:])' "$venv" "$ros_sourced"; }
package_key() { hash_of "${package_files[@]}"; }
dependencies_key() { hash_of "${constraint_files[@]##*/}" setup.py; }

hash_of() {
    (cd "$root" && find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
}

is_fresh() { [[ "$(cat "$venv/.$1-stamp" 2>/dev/null)" == "$("$1_key")" ]]; }

renew() {
    local key
    key="$("$1_key")"
    if [[ "$(cat "$venv/.$1-stamp" 2>/dev/null)" == "$key" ]]; then
        return
    fi
    rm -f "$venv/.$1-stamp"
    "make_$1"
    printf '%s\n' "$key" >"$venv/.$1-stamp"
}

make_venv() {
    say "making ${venv##*/} with $("$python" --version) ..."
    "$python" -m venv --clear ${ros_sourced:+--system-site-packages} "$venv"
    pip install --constraint <(constraints_for_wheels) setuptools
}

# Installed plainly, not editable, since ROS would not find an editable package. From a copy,
# since setuptools leaves litter, and packs what it left of an earlier build.
make_package() (
    say "installing tiekd_ros ..."
    copy="$(mktemp -d)"
    trap 'rm -rf "$copy"' EXIT
    (cd "$root" && cp -R "${package_files[@]}" "$copy")
    pip install --no-deps --no-build-isolation "$copy"
)

make_dependencies() {
    say "installing the dependencies (about 2 minutes the first time; longer where torch brings CUDA) ..."
    local needed
    if [[ -z "$ros_sourced" ]]; then
        mapfile -t needed < <(requirements robot bags onnx huggingface ray "$ros_extra" train test lint)
        pip install --constraint <(constraints_for_wheels) "${needed[@]}"
        return
    fi
    say "(conflicts with packages of the system, if pip names any, are harmless: those stay)"
    # cv_bridge is built against the system's numpy, so numpy and OpenCV stay the system's.
    # launch_pytest does not work with pytest 8.4 and newer.
    "$venv/bin/python" -c 'import cv2, numpy, yaml' ||
        fail "apt-get install python3-opencv python3-numpy python3-yaml (or rosdep install) first"
    mapfile -t needed < <(requirements robot bags teacher huggingface train test lint | grep -v '^opencv')
    pip install "${needed[@]}" --constraint <(constraints_beside_ros)
    mapfile -t needed < <(requirements onnx)
    pip install "${needed[@]}" --constraint <(constraints_beside_ros) ||
        say "(onnxruntime could not be installed (see above): students will run with torch)"
    mapfile -t needed < <(requirements ray)
    pip install "${needed[@]}" --constraint <(constraints_beside_ros) ||
        say "(ray could not be installed (see above): its tests will be skipped)"
}

constraints_for_wheels() {
    if [[ "$wheels" == kilted ]]; then
        cat "${constraint_files[@]}"
    else
        grep -v '^ros-' "${constraint_files[0]}"
        cat "${constraint_files[1]}"
    fi
}

constraints_beside_ros() {
    grep -vE '^(numpy|opencv-python-headless|pyyaml|pytest)==' "$root/constraints.txt"
    "$venv/bin/python" -c 'import numpy; print(f"numpy=={numpy.__version__}\npytest<8.4")'
}

# The requirements of the installed package with these extras, one a line.
requirements() {
    # Isolated: what an old build left in this folder would be read instead.
    "$venv/bin/python" -I - "$@" <<'PYTHON'
import importlib.metadata
import sys

for line in importlib.metadata.requires("tiekd_ros"):
    requirement, _, extra = line.partition("; extra == ")
    if not extra or extra.strip("\"'") in sys.argv[1:]:
        print(requirement)
PYTHON
}

pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$venv/bin/python" -m pip -qq --no-input "$@" 9>&-
}

# --- the machine

sourced_ros() {
    if [[ -z "${ROS_DISTRO:-}" || -z "${AMENT_PREFIX_PATH:-}" ]]; then
        return
    elif "$python" -c 'import rclpy' 2>/dev/null; then
        echo "$ROS_DISTRO"
    else
        say "ROS $ROS_DISTRO is sourced, but $python cannot import its rclpy: taking ROS 2 as wheels"
    fi
}

# The ROS wheels re-execute Python once with these variables set; inherited from another
# environment they point to its libraries. A sourced ROS needs its own, but a sourced workspace
# may hold another build of this package, which must not come first.
forget_other_environments() {
    unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
    if [[ -z "$ros_sourced" ]]; then
        unset LD_LIBRARY_PATH PYTHONPATH AMENT_PREFIX_PATH
    else
        local version
        version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        export PYTHONPATH="$venv/lib/python$version/site-packages${PYTHONPATH:+:$PYTHONPATH}"
    fi
}

check_wheels() {
    [[ "$wheels" == kilted || "$wheels" == jazzy ]] ||
        fail "TIEKD_ROS_WHEELS must be kilted or jazzy, got $wheels"
    [[ -z "$ros_sourced" || -z "${TIEKD_ROS_WHEELS:-}" ]] ||
        fail "ROS $ros_sourced is sourced, so no wheels are used; unset TIEKD_ROS_WHEELS, or use a new shell"
}

check_python() {
    command -v "$python" >/dev/null ||
        fail "$python is not installed; on Debian or Ubuntu: apt-get install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: 3.10 or newer is needed; name another with PYTHON=..."
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        return
    fi
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        say "installing python3-venv with apt-get ..."
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install python3-venv; } >&2 || true
    fi
    "$python" -c 'import ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"
}
