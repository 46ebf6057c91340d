#!/bin/bash
# Training on a slice of Cloud TPU: queues for the slice, whose hosts then install the package and train.
#
#   PROJECT=... ZONE=us-west4-a NAME=melody TYPE=v5litepod-256 RUNTIME=v2-alpha-tpuv5-lite \
#     PACKAGE=gs://BUCKET/melody_jax.tar.gz SHARE=10.0.0.2:/data \
#     TRAINING="dpd_paper_aligned --mesh -1 16 1 --data.batch-size 256 --data.folder /data/features --workdir /data/runs/dpd" \
#     launch/queued_resources.sh
#
# PACKAGE: this folder, packed with `git archive --format tar.gz HEAD`. The hosts run the start-up script again whenever
# they boot, for instance after maintenance, and continue from the last complete checkpoint. /data must be a disk that all
# hosts share, such as Filestore; SHARE (server:/path) is mounted there.
set -euo pipefail
startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
cat > "$startup" <<STARTUP
#!/bin/bash
set -euo pipefail
apt-get update && apt-get install -y nfs-common python3-venv
mkdir -p /data && { mountpoint -q /data || mount -t nfs $SHARE /data; }
mkdir -p /opt/melody_jax && cd /opt/melody_jax
gcloud storage cp $PACKAGE - | tar xz
python3 -m venv /opt/venv
/opt/venv/bin/pip install -c constraints.txt '.[tpu]'
exec /opt/venv/bin/melody train $TRAINING --hosts.join
STARTUP
gcloud compute tpus queued-resources create "$NAME" --project "$PROJECT" --zone "$ZONE" --node-id "$NAME" \
  --accelerator-type "$TYPE" --runtime-version "$RUNTIME" --metadata-from-file "startup-script=$startup"
