#!/usr/bin/env bash
# Runs the compiled kernel under the thread, address and undefined-behaviour sanitizers, in a temporary copy.
#
# Each mutant is a known breakage; a check that names one passes when the breakage is noticed.
# PYTHON is an interpreter with numpy, pytest, pytest-timeout and hypothesis (default python3), CC a gcc or clang.
# Exit status 0: every check passed.
set -u

here=$(cd "$(dirname "$0")/.." && pwd)
python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)') || exit 1
cc=${CC:-gcc}
work=$(mktemp -d "${TMPDIR:-/tmp}/mmwal-sanitize.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
failed=0

# ---- a copy of what the kernel's tests need, and nothing else of the package

copy() { # copy NAME: a fresh copy, made the current directory
    mkdir -p "$work/$1/mmwal" "$work/$1/tests" && cd "$work/$1" || exit 1
    cp -R "$here/mmwal/kernel" "$here/mmwal/format" "$here/mmwal/errors.py" mmwal/ || exit 1
    cp -R "$here/tests/kernel" "$here/tests/conftest.py" "$here/tests/__init__.py" tests/ || exit 1
    cp "$here/pyproject.toml" . || exit 1
    : > mmwal/__init__.py
    rm -f mmwal/kernel/*.so
}

breakage() { # breakage FILE BEFORE AFTER: replaces one piece of the source; it must be there
    "$python" - "$@" <<'PYTHON' || exit 1
import sys
path, before, after = sys.argv[1:]
text = open(path).read()
if text.count(before) != 1:
    sys.exit(f"{path}: the text to break occurs {text.count(before)} times: {before}")
open(path, "w").write(text.replace(before, after))
PYTHON
}

# ---- verdicts

verdict() { # verdict NAME OK LOG
    if [ "$2" = 0 ]; then
        echo "pass  $1"
    else
        echo "FAIL  $1"
        tail -n 40 "$3" | sed 's/^/      /'
        failed=1
    fi
}

holds() { # holds NAME COMMAND...: passes when the command succeeds
    local name=$1
    shift
    "$@" > "$work/log" 2>&1
    verdict "$name" $? "$work/log"
}

noticed() { # noticed NAME PATTERN COMMAND...: passes when the command fails and says PATTERN
    local name=$1 pattern=$2
    shift 2
    if "$@" > "$work/log" 2>&1; then
        echo "the breakage went unnoticed" >> "$work/log"
        verdict "$name" 1 "$work/log"
    else
        grep -q -e "$pattern" "$work/log"
        verdict "$name" $? "$work/log"
    fi
}

# ---- programs

program() { # program NAME FLAGS...: builds and runs a C test of the current copy
    local name=$1
    shift
    "$cc" -std=c11 -O1 -g -pthread -Wall -Wextra "$@" "tests/kernel/$name.c" -o "$name" || return 1
    TSAN_OPTIONS=halt_on_error=1 "./$name"
}

extension() { # builds the extension of the current copy under the address and undefined-behaviour sanitizers
    "$cc" -std=c11 -O1 -g -shared -fPIC -fno-strict-aliasing -fno-omit-frame-pointer -Wall -Wextra \
        -fsanitize=address,undefined -fno-sanitize-recover=undefined -DPy_LIMITED_API=0x030B0000 \
        -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
        mmwal/kernel/_kernel.c -o mmwal/kernel/_kernel.abi3.so
}

tests() { # tests ARGUMENTS...: pytest on the current copy with the sanitized extension
    extension || return 1
    local runtime
    runtime=$("$cc" -print-file-name=libasan.so)
    LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc MMWAL_REQUIRE_EXTENSION=1 PYTHONDONTWRITEBYTECODE=1 \
        "$python" -c 'import mmwal.kernel as k, os, sys; sys.exit(not k.load("c").__file__.startswith(os.getcwd()))' ||
        { echo "the sanitized extension is not the one that is imported"; return 1; }
    LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc MMWAL_REQUIRE_EXTENSION=1 PYTHONDONTWRITEBYTECODE=1 \
        "$python" -m pytest -q -x -p no:cacheprovider "$@"
}

# ---- the checks

copy sound
holds "race test, thread sanitizer" program race_test -fsanitize=thread
holds "race test, thread sanitizer, portable checksum" program race_test -fsanitize=thread -DMMWAL_CRC_PORTABLE
holds "race test, address and undefined-behaviour sanitizers" program race_test -fsanitize=address,undefined
noticed "mutant: commit word stored without release" "data race" \
    program race_test -fsanitize=thread -DMM_ORDER_PUBLISH=__ATOMIC_RELAXED
noticed "mutant: commit word read without acquire" "data race" \
    program race_test -fsanitize=thread -DMM_ORDER_LOOK=__ATOMIC_RELAXED

copy acknowledges-early
breakage mmwal/kernel/cursor.h "covered = mm_advance(cursor) >= end" "covered = mm_advance(cursor) > 0"
noticed "mutant: append returns before published covers it" "does not hold" program race_test

copy tag-without-salt
breakage mmwal/kernel/frame.h "uint64_t x = salt ^ (lsn" "uint64_t x = 0 * salt ^ (lsn"
noticed "mutant: commit words of an earlier life look published" "does not hold" program race_test

copy walks-over-holes
breakage mmwal/kernel/cursor.h "if (length == 0 || length" "if (length"
breakage mmwal/kernel/cursor.h "lsn = at + length;" "lsn = at + (length != 0 ? length : 64);"
noticed "mutant: published walks over an unfinished frame" "does not hold" program race_test

cd "$work/sound" || exit 1
holds "checksum paths, address and undefined-behaviour sanitizers" program crc_test -fsanitize=address,undefined
holds "tests/kernel, address and undefined-behaviour sanitizers" tests tests/kernel

cd "$here" || exit 1
holds "hostile inputs, address and undefined-behaviour sanitizers" \
    "$python" tools/fuzz.py --sanitize --inputs 20000 --structure scan --structure rows --structure frames --structure wal

copy reads-beyond
breakage mmwal/kernel/frame.h "*length > end - lsn ||" ""
noticed "mutant: a frame's length is not held against the end" "AddressSanitizer" \
    tests tests/kernel/test_scan.py -s -k "beyond and memory" # -s: its report goes past pytest

exit $failed
