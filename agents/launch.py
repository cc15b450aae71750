"""What the environment must hold before Python and JAX start: a script without it starts itself again.

On a CPU an update allocates the same large arrays again and again, and XLA's newer convolutions are slower than the
older ones; the README says what each setting gains. Variables that are already set are left alone.
"""

import os
import sys

GIB = 2**30
SETTINGS = {
    # glibc: allocate in huge pages, and keep what was freed instead of giving it back after each update.
    "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={GIB}:"
    f"glibc.malloc.trim_threshold={4 * GIB}:glibc.malloc.top_pad={GIB // 4}",
    # XLA: matrix products and sums by YNNPACK as by default, but convolutions by Eigen.
    "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def prepare() -> None:
    """Starts this process again with `SETTINGS`, unless they are there; call it before JAX is imported."""
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, sys.orig_argv, os.environ | missing)
