#!/usr/bin/env bash
# What an image needs of Debian 12: packages, and the user that the processes run as. Run as root; safe to run again.
#
# usage: system.sh build|gateway|worker
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

readonly UV=0.13.9
readonly HERD_UID=10001 # fixed: who mounts files for the processes has to know it
readonly HERD_HOME=/home/herd

main() {
  case "${1:-}" in
    build)
      install_packages python3 python3-venv
      python3 -m venv /opt/uv
      /opt/uv/bin/python -m pip install --quiet "uv==$UV"
      ;;
    gateway)
      install_packages python3
      add_user
      ;;
    worker)
      # Triton compiles its launchers by gcc against Python's headers when they are first used. NVRTC, which compiles
      # the kernels, comes with torch and needs neither.
      install_packages python3 python3-dev gcc libc6-dev
      add_user
      ;;
    *)
      echo "usage: $0 build|gateway|worker" >&2
      exit 2
      ;;
  esac
}

install_packages() {
  apt-get update -qq
  apt-get install -qq --yes --no-install-recommends ca-certificates "$@" >/dev/null
  rm -rf /var/lib/apt/lists/*
}

# The cache folder is there so that a volume mounted over it belongs to the user.
add_user() {
  id herd >/dev/null 2>&1 ||
    useradd --uid "$HERD_UID" --user-group --home-dir "$HERD_HOME" --no-create-home --shell /usr/sbin/nologin herd
  install --directory --owner=herd --group=herd "$HERD_HOME" "$HERD_HOME/.cache"
}

main "$@"
