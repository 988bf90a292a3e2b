#!/usr/bin/env bash
# Fits a masked-language-model head for an encoder that has none: bash examples/mlm_head/fit.sh RUN [KEY=VALUE ...]
# Needs XSALT_DATA with plain text in XSALT_DATA/text, a file LL.txt a language. See README.md beside this.
set -euo pipefail
RUN=${1:?usage: fit.sh RUN [KEY=VALUE ...]}
shift
TEXT=${XSALT_DATA:?set XSALT_DATA to the folder of real data}/text
exec xsalt-train --task mlm --augmenter codeswitch --criterion target_language_mlm run="$RUN" \
    data.root="$TEXT" vocabulary.text="$TEXT" source=ar,bg,de,el,es,fr,hi,ru,sw,th,tr,ur,vi,zh languages=en \
    model.mlm_layer=2 model.mlm_activation=none freeze=embeddings,encoder \
    criterion.target_language_mlm.predict=replaced criterion.target_language_mlm.positions=unmasked \
    criterion.target_language_mlm.mask_rate=1 \
    augmenter.codeswitch.ratio=1 augmenter.codeswitch.threshold=0 augmenter.codeswitch.choose=sample \
    distill.method=anchors distill.passages=6000 distill.layer=2 distill.k=4 \
    data.max_train=4000 batch.size=128 epochs=2 dropout=0 optim.lr=1e-3 "$@"
