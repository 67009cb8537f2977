/* torch's CUDA library sees as many devices as it asks about; everyone else, torch.cuda included, sees none. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

signed char _ZN3c104cuda12device_countEv(void) {
    Dl_info caller;
    int found = dladdr(__builtin_return_address(0), &caller) && caller.dli_fname;
    return found && strstr(caller.dli_fname, "libtorch_cuda.so") ? 127 : 0;
}
