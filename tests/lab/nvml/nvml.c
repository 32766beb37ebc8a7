/* A stand-in for NVIDIA's libnvidia-ml.so.1 that tells of pretended GPUs; for tests, and never for more than asking.
 *
 * The folder is the one that STANDIN_NVML names, else the one in which this library lies (a login may drop variables):
 *   gpus      one line a GPU: index, UUID, bytes, name. A UUID that begins with MIG- is an instance of the GPU of that
 *             index, which has a line of its own before it. (docs/simulator.md, "Shared GPUs")
 *   held/PID  lines: pid, start time, UUID, bytes. A line counts while that process lives and is no zombie.
 *   faults    lines: what is to go wrong; see tests/lab/nvml/__init__.py
 * All are read again with each question. Signatures, codes and structures are those that pynvml calls (its own file).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18, UNKNOWN = 999
};
#define MOST 256
#define HIDDEN (~0ULL) /* NVML_VALUE_NOT_AVAILABLE */

typedef unsigned long long bytes;
typedef struct { int index, instance; bytes total; char uuid[96], name[96]; } gpu; /* instance -1: a whole one */
typedef struct { bytes total, free, used; } memory;                               /* nvmlMemory_t */
typedef struct { unsigned pid; bytes used; unsigned gi, ci; } process;            /* nvmlProcessInfo_v2_t and later */
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci; /* nvmlPciInfo_t */

static gpu gpus[MOST];
static int count, initialized;

static const char *folder(void)
{
    static char found[4096];
    const char *named = getenv("STANDIN_NVML");
    Dl_info here;
    if (named && *named)
        return named;
    if (dladdr((void *)folder, &here) && here.dli_fname && strrchr(here.dli_fname, '/'))
        snprintf(found, sizeof found, "%.*s", (int)(strrchr(here.dli_fname, '/') - here.dli_fname), here.dli_fname);
    return found;
}

static FILE *opened(const char *name)
{
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", folder(), name);
    return fopen(path, "re");
}

/* The words after `format` in the first line of `faults` that begins with it; NULL where there is none. */
static const char *fault(const char *format, ...)
{
    static char line[512];
    char wanted[256];
    va_list values;
    FILE *file = opened("faults");
    const char *found = NULL;
    if (!file)
        return NULL;
    va_start(values, format);
    vsnprintf(wanted, sizeof wanted, format, values);
    va_end(values);
    size_t length = strlen(wanted);
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, wanted, length) && (!line[length] || line[length] == ' '))
            found = line + length + (line[length] == ' ');
    }
    fclose(file);
    return found;
}

static int read_gpus(void)
{
    char line[512];
    int why = SUCCESS;
    FILE *file = opened("gpus");
    count = 0;
    if (!file)
        return DRIVER_NOT_LOADED;
    while (count < MOST && fgets(line, sizeof line, file)) {
        gpu *one = &gpus[count];
        if (*line == '#' || sscanf(line, "%d %95s %llu %95[^\n]", &one->index, one->uuid, &one->total, one->name) != 4)
            continue;
        one->instance = -1;
        if (!strncmp(one->uuid, "MIG-", 4)) {
            int parents = 0;
            one->instance = 0;
            for (int i = 0; i < count; i++) {
                parents += gpus[i].index == one->index && gpus[i].instance < 0;
                one->instance += gpus[i].index == one->index && gpus[i].instance >= 0;
            }
            if (!parents) {
                fprintf(stderr, "nvml.c: %s has no GPU %d before it\n", one->uuid, one->index);
                why = UNKNOWN;
            }
        }
        count++;
    }
    fclose(file);
    return why;
}

static gpu *whole(int index)
{
    for (int i = 0; i < count; i++)
        if (gpus[i].index == index && gpus[i].instance < 0)
            return &gpus[i];
    return NULL;
}

static gpu *part(int index, int instance)
{
    for (int i = 0; i < count; i++)
        if (gpus[i].index == index && gpus[i].instance == instance)
            return &gpus[i];
    return NULL;
}

/* Whether a process is still the one that started then: field 22 of proc_pid_stat(5), and no zombie. */
static int lives(unsigned pid, bytes start)
{
    char path[64], text[1024], state;
    bytes started = 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *rest = strrchr(text, ')');
    return rest
        && sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state,
                  &started) == 2
        && started == start && state != 'Z' && state != 'X';
}

/* Who holds memory of a GPU, and of its instances where it is a whole one; at most `room` of them. */
static int holders(const gpu *one, process *found, int room)
{
    char path[4400], line[512], uuid[96];
    struct dirent *entry;
    int number = 0;
    snprintf(path, sizeof path, "%s/held", folder());
    DIR *all = opendir(path);
    if (!all)
        return 0;
    while ((entry = readdir(all)) != NULL) {
        if (*entry->d_name < '0' || *entry->d_name > '9')
            continue;
        snprintf(path, sizeof path, "held/%s", entry->d_name);
        FILE *file = opened(path);
        while (file && number < room && fgets(line, sizeof line, file)) {
            unsigned pid;
            bytes start, used;
            if (*line == '#' || sscanf(line, "%u %llu %95s %llu", &pid, &start, uuid, &used) != 4)
                continue;
            const gpu *its = NULL;
            for (int i = 0; i < count && !its; i++)
                its = strcmp(gpus[i].uuid, uuid) ? NULL : &gpus[i];
            if (!its || its->index != one->index || (one->instance >= 0 && its != one) || !lives(pid, start))
                continue;
            unsigned instance = its->instance < 0 ? ~0U : (unsigned)its->instance;
            found[number++] = (process){pid, used, instance, its->instance < 0 ? ~0U : 0};
        }
        if (file)
            fclose(file);
    }
    closedir(all);
    return number;
}

/* What any question comes to before it is answered. */
static int barred(const char *function, const gpu *one)
{
    if (fault("missing %s", function))
        return FUNCTION_NOT_FOUND;
    if (!initialized)
        return UNINITIALIZED;
    if (one && fault("gone %s", one->uuid))
        return INVALID_ARGUMENT;
    return one && fault("falling %d", one->index) ? GPU_IS_LOST : SUCCESS;
}
#define ASKED(one)                                    \
    do {                                              \
        int why = barred(__func__, one);              \
        if (why)                                      \
            return why;                               \
    } while (0)

static int text(char *out, unsigned room, const char *value)
{
    return snprintf(out, room, "%s", value) < (int)room ? SUCCESS : INSUFFICIENT_SIZE;
}

const char *nvmlErrorString(int code)
{
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case FUNCTION_NOT_FOUND: return "Function Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    if (fault("init mismatch"))
        return LIB_RM_VERSION_MISMATCH;
    if (fault("init driver"))
        return DRIVER_NOT_LOADED;
    int why = read_gpus();
    initialized = why == SUCCESS;
    return why;
}

int nvmlShutdown(void)
{
    ASKED(NULL);
    initialized = 0;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned room)
{
    ASKED(NULL);
    return text(version, room, "595.71");
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ASKED(NULL);
    *version = 13020;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *number)
{
    ASKED(NULL);
    *number = 0;
    for (int i = 0; i < count; i++)
        *number += gpus[i].instance < 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu **one)
{
    ASKED(NULL);
    if (fault("lost %u", index))
        return GPU_IS_LOST;
    if (fault("unknown %u", index))
        return UNKNOWN;
    return (*one = whole((int)index)) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetUUID(const gpu *one, char *uuid, unsigned room)
{
    ASKED(one);
    return text(uuid, room, one->uuid);
}

int nvmlDeviceGetName(const gpu *one, char *name, unsigned room)
{
    ASKED(one);
    return text(name, room, one->name);
}

int nvmlDeviceGetPciInfo_v3(const gpu *one, pci *place)
{
    ASKED(one);
    *place = (pci){.bus = 0x10u * (unsigned)(one->index + 1)};
    snprintf(place->legacy, sizeof place->legacy, "0000:%02X:00.0", place->bus);
    snprintf(place->bus_id, sizeof place->bus_id, "00000000:%02X:00.0", place->bus);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(const gpu *one, memory *found)
{
    process rows[MOST];
    ASKED(one);
    if (one->instance < 0 && fault("memory %d denied", one->index))
        return NO_PERMISSION;
    const char *kept = one->instance < 0 ? fault("reserved %d", one->index) : NULL;
    found->total = one->total;
    found->used = kept ? strtoull(kept, NULL, 10) : 0;
    for (int i = holders(one, rows, MOST); i-- > 0;)
        found->used += rows[i].used;
    if (found->used > found->total)
        found->used = found->total;
    found->free = found->total - found->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(const gpu *one, int *mode)
{
    ASKED(one);
    if (one->instance >= 0)
        return NOT_SUPPORTED;
    const char *said = fault("compute_mode %d", one->index);
    *mode = !said ? 0 : !strcmp(said, "exclusive_thread") ? 1 : !strcmp(said, "prohibited") ? 2 : 3;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(const gpu *one, unsigned *current, unsigned *pending)
{
    ASKED(one);
    const char *said = fault("mig %d", one->index);
    if (said && !strcmp(said, "unsupported"))
        return NOT_SUPPORTED;
    *current = *pending = part(one->index, 0) || (said && !strcmp(said, "on"));
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(const gpu *one, unsigned *most)
{
    ASKED(one);
    *most = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(const gpu *one, unsigned number, gpu **found)
{
    ASKED(one);
    return (*found = part(one->index, (int)number)) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetTotalEccErrors(const gpu *one, int kind, int counter, bytes *errors)
{
    ASKED(one);
    const char *said = fault("ecc %d", one->index);
    if (said && !strcmp(said, "unsupported"))
        return NOT_SUPPORTED;
    *errors = said && kind == 1 && counter == 0 ? strtoull(said, NULL, 10) : 0;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(const gpu *one, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed)
{
    ASKED(one);
    if (part(one->index, 0))
        return NOT_SUPPORTED; /* not told of split GPUs */
    *corrected = *uncorrected = *pending = 0;
    *failed = fault("remapping %d failed", one->index) != NULL;
    return SUCCESS;
}

/* Every list of processes: first their number is asked for, with no room, then they themselves. */
static int listed(const gpu *one, unsigned *number, process *found, int any)
{
    process rows[MOST];
    if (fault("processes denied"))
        return NO_PERMISSION;
    int there = any ? holders(one, rows, MOST) : 0, hidden = fault("processes hidden") != NULL;
    unsigned room = *number;
    *number = (unsigned)there;
    if ((unsigned)there > room)
        return INSUFFICIENT_SIZE;
    for (int i = 0; i < there; i++) {
        found[i] = rows[i];
        if (hidden)
            found[i].used = HIDDEN;
    }
    return SUCCESS;
}

#define LIST(name, any)                                                 \
    int name(const gpu *one, unsigned *number, process *found)          \
    {                                                                   \
        ASKED(one);                                                     \
        return listed(one, number, found, any);                         \
    }
LIST(nvmlDeviceGetComputeRunningProcesses_v2, 1)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, 1)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, fault("graphics too") != NULL)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, fault("graphics too") != NULL)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, 0)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, 0)
