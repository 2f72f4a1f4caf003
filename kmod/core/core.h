/* SPDX-License-Identifier: GPL-2.0 */
/* The whole core, for those who want all of it. */
#ifndef M2M_CORE_H
#define M2M_CORE_H

#include "checksum.h"
#include "config.h"
#include "edit.h"
#include "entry.h"
#include "lifetime.h"
#include "rule.h"
#include "sequence.h"
#include "splice.h"
#include "tuple.h"
#include "verdict.h"

#endif /* M2M_CORE_H */
