#!/bin/sh
# Refuses an object that must not go into a kernel: one that wants symbols nobody there has (libcore's panics and
# formatting), uses vector or floating-point registers, or branches indirectly where kernels have mitigations.
set -eu
object=$1
allowed='^(glue_[a-z_]+|memcpy|memmove|memset|memcmp|bcmp|strlen|__x86_return_thunk)$'

undefined=$(nm --undefined-only --format=just-symbols "$object" | grep -Ev "$allowed" || true)
if [ -n "$undefined" ]; then
    echo "$object: undefined symbols a kernel does not have:" $undefined >&2
    exit 1
fi
code=$(objdump --disassemble --no-show-raw-insn "$object")
registers=$(printf '%s\n' "$code" | grep -E '%([xyz]mm[0-9]|mm[0-7]|st\b)' || true)
if [ -n "$registers" ]; then
    printf '%s: vector or floating-point registers:\n%s\n' "$object" "$registers" >&2
    exit 1
fi
indirect=$(printf '%s\n' "$code" | grep -E '\s(call|jmp)q?\s+\*' || true)
if [ -n "$indirect" ]; then
    printf '%s: indirect branches:\n%s\n' "$object" "$indirect" >&2
    exit 1
fi
