#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace regcache {

#if defined(__x86_64__) || defined(__i386__)

namespace {

// What the operating system saves of the vector registers; 0 where it cannot be asked.
std::uint32_t saved_state() {
    std::uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return 0;  // OSXSAVE
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

}  // namespace

bool may_saturate() {
    constexpr std::uint32_t kAvx = 0x6, kAvx512 = 0xe6;  // bits of XCR0
    const std::uint32_t state = saved_state();
    std::uint32_t a, b, c, d;
    const bool avx512_vnni = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 11);
    const bool avx_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
    return !(avx512_vnni && (state & kAvx512) == kAvx512) && !(avx_vnni && (state & kAvx) == kAvx);
}

#else

bool may_saturate() { return false; }

#endif

namespace {

// A positive number at the front of a file's text; 0 for "max", -1 and files that are not there.
std::vector<double> numbers(const std::string &path) {
    std::ifstream file(path);
    std::vector<double> found;
    for (std::string word; file >> word;)
        try {
            found.push_back(word == "max" ? 0 : std::stod(word));
        } catch (const std::exception &) {
            return {};
        }
    return found;
}

bool lists(const std::string &names, const std::string &name) {
    return ("," + names + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

int core_limit(const std::string &root) {
    double least = 0;
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const auto first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string names = line.substr(first + 1, second - first - 1);
        std::vector<std::string> mounts;
        if (names.empty())
            mounts = {"", "/unified"};
        else if (lists(names, "cpu"))
            mounts = {"/" + names, "/cpu"};
        for (const auto &mount : mounts) {
            // a container often sees its own group as the root, under the path of the host
            std::string place = line.substr(second + 1);
            if (place.empty() || place[0] != '/') place = "/";
            for (bool more = true; more;) {
                const std::string folder = root + "/sys/fs/cgroup" + mount + place + "/";
                auto limit = numbers(folder + "cpu.max");  // version 2: quota and period
                if (limit.empty())
                    for (const char *name : {"cpu.cfs_quota_us", "cpu.cfs_period_us"})
                        for (const double value : numbers(folder + name)) limit.push_back(value);
                if (limit.size() == 2 && limit[0] > 0 && limit[1] > 0) {
                    const double cores = limit[0] / limit[1];
                    if (least == 0 || cores < least) least = cores;
                }
                more = !place.empty();
                place.resize(more ? place.rfind('/') : 0);
            }
        }
    }
    return int(std::ceil(std::min(least, 65536.0)));
}

unsigned usable_cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return unsigned(CPU_COUNT(&set));
#endif
    return std::thread::hardware_concurrency();
}

int physical_cores() {
    std::set<std::string> cores;
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        for (int i = 0; i < CPU_SETSIZE; ++i) {
            if (!CPU_ISSET(i, &allowed)) continue;
            const std::string name = std::to_string(i);
            std::ifstream file("/sys/devices/system/cpu/cpu" + name +
                               "/topology/thread_siblings_list");
            std::string siblings;
            cores.insert(std::getline(file, siblings) ? siblings : name);
        }
#endif
    const int found = cores.empty() ? int(usable_cores()) : int(cores.size());
    const int limit = core_limit();
    return std::max(1, limit ? std::min(limit, found) : found);
}

}  // namespace regcache
