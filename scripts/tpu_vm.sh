#!/usr/bin/env bash
# A TPU VM slice from creation to results, and again after it was preempted.
#
#   scripts/tpu_vm.sh [--dry-run] COMMAND
#     create                 make the slice (spot, if SPOT=1)
#     copy                   send this checkout to every worker, install, mount the bucket
#     run CONFIG [k=v ...]   hllm train on every worker; the run folder is the mounted bucket
#     collect                fetch the run folder
#     supervise CONFIG ...   create, copy and run, again and again until the run has ended by itself
#     delete
#
# Environment: TPU_NAME, ZONE, TYPE (v5p-32, v6e-16, ...), VERSION (the TPU VM image), BUCKET (for run folders: a
# preempted machine takes its disk along), and SPOT=1. With --dry-run the commands are printed and not run.
set -euo pipefail

DRY=""
if [ "${1:-}" = "--dry-run" ]; then DRY=1; shift; fi

usage() { sed -n '2,14p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }

need() {
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] || { echo "tpu_vm.sh: set $name; see the head of this file" >&2; exit 2; }
  done
}

do_it() {
  if [ -n "$DRY" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpu() { do_it gcloud compute tpus tpu-vm "$@" --zone "$ZONE"; }

everywhere() { tpu ssh "$TPU_NAME" --worker=all --command "$1"; }

create() {
  need TPU_NAME ZONE TYPE VERSION
  local spot=()
  [ "${SPOT:-}" = 1 ] && spot=(--spot)
  tpu create "$TPU_NAME" --accelerator-type "$TYPE" --version "$VERSION" "${spot[@]}"
}

copy() {
  need TPU_NAME ZONE BUCKET
  local bundle
  bundle="$(mktemp -d)/hllm.tar.gz"
  do_it git archive --format=tar.gz -o "$bundle" HEAD &&
    tpu scp "$bundle" "$TPU_NAME:hllm.tar.gz" --worker=all &&
    everywhere "mkdir -p hllm runs && tar xzf hllm.tar.gz -C hllm && make -C hllm setup EXTRAS=tpu" &&
    everywhere "mountpoint -q runs || gcsfuse --implicit-dirs ${BUCKET#gs://} runs"
}

run() {
  need TPU_NAME ZONE
  [ $# -ge 1 ] || usage
  # The processes find each other by themselves on a TPU pod.
  everywhere "cd hllm && .venv/bin/hllm train $(printf '%q ' "$@") run.platform=tpu run.dir=\$HOME/runs/$TPU_NAME"
}

collect() {
  need TPU_NAME ZONE
  tpu scp --recurse "$TPU_NAME:runs/$TPU_NAME" . --worker=0
}

delete() {
  need TPU_NAME ZONE
  tpu delete "$TPU_NAME" --quiet
}

# READY, PREEMPTED, ...; NONE where there is no such slice; nothing where the question was not answered.
state() {
  local said
  if said="$(gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone "$ZONE" --format 'value(state)' 2>&1)"; then
    echo "$said"
  elif grep -q NOT_FOUND <<<"$said"; then
    echo NONE
  fi
}

supervise() {
  need TPU_NAME ZONE TYPE VERSION BUCKET
  [ $# -ge 1 ] || usage
  local copied=""
  if [ -n "$DRY" ]; then create; copy; run "$@"; return; fi
  while true; do
    case "$(state)" in
      READY) ;;
      NONE) copied=""; create || { sleep 300; continue; } ;;
      PREEMPTED | TERMINATED | STOPPED) copied=""; delete || true; sleep 10; continue ;;
      *) sleep 60; continue ;; # on its way, or the question was not answered
    esac
    [ -n "$copied" ] || copy || { sleep 60; continue; }
    copied=1
    # The run goes on from its newest checkpoint. A preempted one ends with status 0 too, after a last save.
    if run "$@"; then
      sleep 60
      if [ "$(state)" = READY ]; then return; fi
    elif [ "$(state)" = READY ]; then
      echo "tpu_vm.sh: the run failed on a healthy slice" >&2
      return 1
    fi
  done
}

case "${1:-}" in
  create | copy | run | collect | delete | supervise) command="$1"; shift; "$command" "$@" ;;
  *) usage ;;
esac
