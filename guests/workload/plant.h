// The verifier's own proof: plants one fault of each kind, for plant=N on the command line.
#ifndef FVMM_GUESTS_WORKLOAD_PLANT_H_
#define FVMM_GUESTS_WORKLOAD_PLANT_H_

#include "workload/region.h"

/// Spoils the last four tested pages (zero, flip, alien, swapped) and, once every slot has been rewritten, the first
/// four slots (stale, ahead, torn between versions, torn with zeros). Needs more than eight tested pages.
void plant_faults(const struct region* region);

#endif  // FVMM_GUESTS_WORKLOAD_PLANT_H_
