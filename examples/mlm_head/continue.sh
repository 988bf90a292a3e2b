#!/usr/bin/env bash
# Continued masked language modelling on plain text, the whole encoder trained: the kind of model that SALT's paper starts
# from. bash examples/mlm_head/continue.sh RUN [KEY=VALUE ...], with XSALT_DATA as for fit.sh.
set -euo pipefail
RUN=${1:?usage: continue.sh RUN [KEY=VALUE ...]}
shift
TEXT=${XSALT_DATA:?set XSALT_DATA to the folder of real data}/text
exec xsalt-train --task mlm --criterion target_language_mlm run="$RUN" \
    data.root="$TEXT" vocabulary.text="$TEXT" source=en,ar,bg,de,el,es,fr,hi,ru,sw,th,tr,ur,vi,zh languages=[] \
    criterion.target_language_mlm.positions=mixed data.max_train=4000 batch.size=64 epochs=1 optim.lr=2e-4 "$@"
