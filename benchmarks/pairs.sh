#!/bin/sh
# Three more tasks on real pairs, each from its files to scores on held-out pairs.
#
#     LMCLI_TEST_DATA=... benchmarks/pairs.sh en-zh        Tatoeba, English to Chinese: BLEU by zh
#     LMCLI_TEST_DATA=... benchmarks/pairs.sh java-cs      CodeXGLUE, Java to C#: BLEU, exact match
#     LMCLI_TEST_DATA=... benchmarks/pairs.sh titles       CSL, Chinese abstract to title: ROUGE
#
# The checkpoint is the best on val. Below the scores of the model stand those of a baseline that
# learns nothing: the source as it is, and for titles its first 20 characters. Again: what is there
# stays.
set -eu

task=${1-}
cd "$(dirname "$0")/.."
data=${LMCLI_TEST_DATA:?is the folder of corpora}
work=${WORK:-artifacts/pairs}
export LMCLI_ARTIFACTS="$work" PYTHONUTF8=1
lmcli() { "${PYTHON:-python}" -m lmcli "$@"; }
text="$work/text"
mkdir -p "$text"

# ---- the recipes ---------------------------------------------------------------------------------
shape="--preset transformer-tiny --norm-position pre"
training="--optimizer muon --lr 0.02 --weight-decay 0.1 --schedule linear --warmup-steps 50
    --batch-tokens 4096 --eval-every 250 --eval-tokens 0 --save-every 250"
decoding="--num-beams 5 --batch-size 64"
longest=500

# shellcheck disable=SC2086 # flags are words
case $task in
en-zh)
    tr -d '\r' <"$data/tatoeba-cmn-eng/cmn.txt" | sed '1s/^\xef\xbb\xbf//' >"$text/cmn.tsv"
    cut -f1 "$text/cmn.tsv" >"$text/en"
    cut -f2 "$text/cmn.tsv" >"$text/zh"
    lmcli tokenizer train "$text/en" "$text/zh" --name $task --vocab-size 8000
    lmcli data build --source "$text/en" --target "$text/zh" --tokenizer $task --name $task \
        --drop-duplicates
    lmcli train --data $task --name $task $shape $training --steps 2000 --task translation
    measure="-m bleu -m chrf --tokenize zh"
    ;;
java-cs)
    # Their test file is not among the corpora: valid is held out, and val is a part of train.
    java="$data/codexglue/train.java-cs.txt.java" cs="$data/codexglue/train.java-cs.txt.cs"
    valid="$data/codexglue/valid.java-cs.txt"
    lmcli tokenizer train "$java" "$cs" --name $task --vocab-size 8000
    lmcli data build --source "$java" --target "$cs" --test-source "$valid.java" \
        --test-target "$valid.cs" --tokenizer $task --name $task --max-source-length 510 \
        --max-target-length 510 --on-error skip
    lmcli train --data $task --name $task $shape $training --steps 1500 --context-length 512
    measure="-m bleu -m exact_match"
    ;;
titles)
    longest=60 # a title; a decoder keeps this much of its context free
    # A decoder reads modern Chinese first: the passages of CMRC 2018, and two old novels.
    "${PYTHON:-python}" - "$data" "$text" <<'PYTHON'
import json, sys
from pathlib import Path

data, text = map(Path, sys.argv[1:])
passages = json.loads((data / "cmrc2018/cmrc2018_dev.json").read_text(encoding="utf-8"))["data"]
found = {p["context"]: None for entry in passages for p in entry["paragraphs"]}
(text / "passages.txt").write_text("\n\n".join(found), encoding="utf-8")
rows = (data / "csl-title/ts.dev.tsv").read_text(encoding="utf-8").splitlines()
for name, column in (("abstract", 1), ("title", 2)):
    lines = [row.split("\t")[column] for row in rows]
    (text / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
PYTHON
    lmcli tokenizer train "$text/passages.txt" "$text/abstract" --name $task --vocab-size 6000
    lmcli data build "$text/passages.txt" "$data"/chinese-novels/*.txt --document block \
        --tokenizer $task --name chinese --test-fraction 0
    lmcli train --data chinese --name chinese --context-length 512 \
        --budget "${BUDGET:-10min}"
    lmcli data build --source "$text/abstract" --target "$text/title" --tokenizer $task \
        --name $task --val-fraction 0.1 --test-fraction 0.2
    lmcli finetune --from chinese --data $task --name $task --task summarization --steps 400 \
        --lr 0.005 --warmup-steps 20 --batch-tokens 4096 --dropout 0.1 --eval-every 50 \
        --eval-tokens 0
    measure="-m rouge1 -m rouge2 -m rougeL"
    ;;
*) echo "usage: $0 en-zh|java-cs|titles" >&2 && exit 2 ;;
esac
# --------------------------------------------------------------------------------------------------

# shellcheck disable=SC2086
lmcli eval $task --split test $decoding --max-new-tokens $longest $measure

# The baseline, on the same pairs.
lmcli data show $task --split test --limit 1000000 --json |
    "${PYTHON:-python}" -c '
import json, sys

task, folder = sys.argv[1:]
with open(f"{folder}/copied", "w") as copied, open(f"{folder}/wanted", "w") as wanted:
    for pair in map(json.loads, sys.stdin):
        print(pair["source"][: 20 if task == "titles" else None], file=copied)
        print(pair["target"], file=wanted)' $task "$text"
# shellcheck disable=SC2086
lmcli score "$text/copied" --ref "$text/wanted" $measure
