/* control.c - configuration, commands while it runs, counters; see forwarder.h. */
#define _GNU_SOURCE
#include "forwarder.h"
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char *const KEY[] = { "up", "down", "queue", "delay", "jitter", "loss", "cut" };
static const double KEY_MAX[] = { 1e6, 1e6, 1e5, 1e5, 1e5, 1, 1 };
static const char *const COUNTER[] = { "tx_pkts", "tx_bytes", "rx_pkts", "rx_bytes", "drop_up",
    "drop_down", "drop_loss", "drop_route", "drop_memory", "drop_write" };

static uint64_t seed = 1;

/* Applies "key=value ..." to v[first..last].  Returns NULL or what is wrong. */
static const char *apply(double *v, const char *args, int first, int last)
{
    char buf[512], *save = NULL;
    snprintf(buf, sizeof buf, "%s", args);
    for (char *kv = strtok_r(buf, " \t", &save); kv; kv = strtok_r(NULL, " \t", &save)) {
        char *val = strchr(kv, '='), *end = "";
        int k = first;
        if (val)
            *val++ = 0;
        for (; k <= last && strcmp(KEY[k], kv); k++)
            ;
        if (!val || k > last)
            return "expected key=value with a known key";
        int none = last == CUT && !strcmp(val, "-");
        double x = none ? NAN : strtod(val, &end);
        if (!none && (*end || end == val || !(x >= 0 && x <= KEY_MAX[k])))
            return "bad value";
        v[k] = x;
    }
    return NULL;
}

/* Recomputes what the data path uses; called after every change (rare). */
static void recompute(void)
{
    for (int i = 0; i < n_hosts * n_hosts; i++) {
        Pair *p = &pairs[i / n_hosts][i % n_hosts];
        double *a = hosts[i / n_hosts].v, *b = hosts[i % n_hosts].v, *o = p->v;
        int64_t d = 1e6 * (isnan(o[DELAY]) ? a[DELAY] + b[DELAY] : o[DELAY]);
        int64_t j = 1e6 * (isnan(o[JITTER]) ? a[JITTER] + b[JITTER] : o[JITTER]);
        if (d != p->delay || j != p->jitter)
            p->last = 0;                /* a new route: may overtake the old one */
        p->delay = d;
        p->jitter = j;
        p->loss = isnan(o[LOSS]) ? 1 - (1 - a[LOSS]) * (1 - b[LOSS]) : o[LOSS];
        if (o[CUT] > 0)
            p->loss = 1;
    }
}

void print_stats(FILE *f)
{
    const struct Punctuality *p = &punctuality;
    for (Host *h = hosts; h < hosts + n_hosts; h++) {
        fprintf(f, "host=%s", h->name);
        for (int k = 0; k < N_COUNTERS; k++)
            fprintf(f, " %s=%lu%s", COUNTER[k], h->n[k], k == N_COUNTERS - 1 ? "\n" : "");
    }
    fprintf(f, "total delivered=%lu in_flight=%zu late_mean_us=%.1f late_max_us=%.1f "
            "late_over_300us=%lu\n", p->delivered, in_flight,
            p->delivered ? p->sum_ns / 1e3 / p->delivered : 0, p->max_ns / 1e3, p->late);
}

static void open_host(const char *name, const char *netns, const char *dev, const char *ip)
{
    Host *h = &hosts[n_hosts];
    struct ifreq ifr = { .ifr_flags = IFF_TUN | IFF_NO_PI };
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int ns = open(netns, O_RDONLY | O_CLOEXEC);
    if (home < 0 || ns < 0 || setns(ns, CLONE_NEWNET))
        err(1, "host %s: netns %s", name, netns);
    strcpy(ifr.ifr_name, dev);
    h->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (h->fd < 0 || ioctl(h->fd, TUNSETIFF, &ifr) || setns(home, CLONE_NEWNET))
        err(1, "host %s: tun", name);
    close(ns), close(home);
    int ok = inet_pton(AF_INET, ip, &h->addr), low = ntohl(h->addr) & 0xffff;
    if (ok != 1 || by_addr[low] >= 0 || n_hosts == MAXHOST - 1)
        errx(1, "host %s: bad address %s, same low 16 bits as another, or too many", name, ip);
    strcpy(h->name, name);
    h->v[QUEUE] = 100;
    by_addr[low] = n_hosts++;
    for (int i = 0; i < 2 * n_hosts; i++) {              /* pairs with all hosts so far */
        int j = i / 2, me = n_hosts - 1, src = i % 2 ? j : me, dst = i % 2 ? me : j;
        Pair *p = &pairs[src][dst];
        *p = (Pair){ .v = { 0, 0, 0, NAN, NAN, NAN, NAN } };
        p->rng = (seed << 20 | src << 10 | dst | 1ull << 63) * 0x9e3779b97f4a7c15u | 1;
        for (int k = 0; k < 8; k++)
            uniform(&p->rng);           /* decorrelate the streams */
    }
}

static int is(const char *pattern, const char *name)
{
    return !strcmp(pattern, "*") || !strcmp(pattern, name);
}

/* Runs one command line.  Returns NULL or what is wrong. */
static const char *command(const char *line, int setup, FILE *out)
{
    char w[16], a[64], b[64], ns[256], dev[16], ip[32];
    int off = 0, hit = 0;
    const char *bad = NULL;
    if (sscanf(line, "%15s", w) != 1 || *w == '#')
        return NULL;
    if (setup && sscanf(line, "seed %lu", &seed) == 1)
        return NULL;
    if (setup && sscanf(line, "host %31s %255s %15s %31s", a, ns, dev, ip) == 4)
        return open_host(a, ns, dev, ip), NULL;
    if (!strcmp(w, "stats"))
        return print_stats(out), NULL;
    if (!strcmp(w, "reset")) {
        for (int i = 0; i < n_hosts; i++)
            memset(hosts[i].n, 0, sizeof hosts[i].n);
        return punctuality = (struct Punctuality){ 0 }, NULL;
    }
    int link = sscanf(line, "link %63s %n", a, &off) == 1;
    if (!link && sscanf(line, "pair %63s %63s %n", a, b, &off) != 2)
        return "unknown or incomplete command";
    for (int i = 0; i < n_hosts && !bad; i++)
        for (int j = 0; j < (link ? 1 : n_hosts) && !bad; j++)
            if (is(a, hosts[i].name) && (link || is(b, hosts[j].name))) {
                bad = link ? apply(hosts[i].v, line + off, UP, LOSS)
                           : apply(pairs[i][j].v, line + off, DELAY, CUT);
                hit = 1;
            }
    return bad ? bad : hit ? NULL : "no such host";
}

/* Runs all lines of `in` up to the first error, which is described in `out`. */
int script(FILE *in, int setup, FILE *out)
{
    char line[1024];
    const char *bad = NULL;
    for (int no = 1; !bad && fgets(line, sizeof line, in); no++) {
        line[strcspn(line, "\r\n")] = 0;
        if ((bad = command(line, setup, out)))
            fprintf(out, "error: %s: line %d: %s\n", bad, no, line);
    }
    fclose(in);
    recompute();
    return bad != NULL;
}

/* One datagram = command lines; answers "ok" or "error: ...", after their output. */
void control(int fd)
{
    static char buf[65536];
    char *out;
    size_t size;
    struct sockaddr_un peer;
    socklen_t plen = sizeof peer;
    ssize_t n = recvfrom(fd, buf, sizeof buf, 0, (struct sockaddr *)&peer, &plen);
    if (n <= 0)
        return;
    FILE *f = open_memstream(&out, &size);
    if (!script(fmemopen(buf, n, "r"), 0, f))
        fputs("ok\n", f);
    fclose(f);
    sendto(fd, out, size, MSG_DONTWAIT, (struct sockaddr *)&peer, plen);
    free(out);
}
