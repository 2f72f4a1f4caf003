/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The few names the shared core needs, in each of its three worlds: the kernel module, BPF
 * programs (clang -target bpf) and user space (the Cython binding and the core's tests).
 *
 * The core has no kernel API, no allocation and no locks: it computes, each datapath applies.
 */
#ifndef M2M_CORE_TYPES_H
#define M2M_CORE_TYPES_H

#include <linux/types.h>

#ifndef __KERNEL__
#ifndef M2M_TYPES_SHORT
#define M2M_TYPES_SHORT
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s32 s32;
#endif
#endif

/* BPF has no calls to functions of another file, and stack space counts per call. */
#define m2m_inline static inline __attribute__((always_inline, unused))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define m2m_swap16(x) __builtin_bswap16(x)
#define m2m_swap32(x) __builtin_bswap32(x)
#define m2m_swap64(x) __builtin_bswap64(x)
#else
#define m2m_swap16(x) (x)
#define m2m_swap32(x) (x)
#define m2m_swap64(x) (x)
#endif

#endif /* M2M_CORE_TYPES_H */
