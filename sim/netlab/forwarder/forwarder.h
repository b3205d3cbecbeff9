/* netlab - user-space emulator of Internet links between network namespaces.
 *
 * Opens one TUN device per host (created inside the host's netns), routes IPv4
 * packets between them by destination address and applies to a packet a -> b:
 *   uplink shaper of a -> loss(a,b) -> delay(a,b) +- jitter -> downlink shaper of b
 * A shaper is a virtual clock ("when is the line free again") with a drop-tail
 * queue bounded in time.  All packets wait in one heap ordered by due time; the
 * downlink is evaluated in order of arrival there and in virtual time, so a late
 * wake-up never adds to the delay of later packets.
 *
 * usage: netlab-fwd CONFIG CONTROL_SOCKET     prints "ready" when packets flow; ends on
 * SIGINT, SIGTERM or EOF of stdin (parent died); prints the counters then and on SIGUSR1.
 * Commands, one per line, in CONFIG and in datagrams sent to CONTROL_SOCKET:
 *   seed N                              (CONFIG only, first line)
 *   host NAME NETNS_PATH DEV IPV4       (CONFIG only)
 *   link NAME|* [up=MBIT] [down=MBIT] [queue=MS] [delay=MS] [jitter=MS] [loss=0..1]
 *   pair A|* B|* [delay=MS] [jitter=MS] [loss=0..1] [cut=0|1]     (A -> B only)
 *   stats | reset
 * up/down 0 = unlimited.  Without a pair override ("-" removes one) delay and jitter
 * are the sums over both hosts and losses combine as independent events.
 *
 * main.c: start and event loop; path.c: what happens to a packet; control.c: commands and counters. */
#pragma once
#include <stdint.h>
#include <stdio.h>

enum { MAXHOST = 256 };

/* Link parameters: a host has all but CUT, a pair override has DELAY..CUT. */
enum { UP, DOWN, QUEUE, DELAY, JITTER, LOSS, CUT, N_KEYS };

enum { TX_PKTS, TX_BYTES, RX_PKTS, RX_BYTES, DROP_UP, DROP_DOWN, DROP_LOSS, DROP_ROUTE,
       DROP_MEMORY, DROP_WRITE, N_COUNTERS };

typedef struct {
    char name[32];
    uint32_t addr;                      /* network byte order */
    int fd;
    double v[N_KEYS];                   /* Mbit/s, Mbit/s, ms, ms, ms, 0..1 */
    int64_t up_free, down_free;         /* when the line is idle again, ns */
    uint64_t n[N_COUNTERS];
} Host;

typedef struct {
    double v[N_KEYS];                   /* overrides; NAN = derive from both hosts */
    double loss;                        /* effective values ... */
    int64_t delay, jitter;              /* ... in ns */
    uint64_t rng;                       /* own stream: reproducible per pair */
    int64_t last;                       /* latest arrival; keeps the pair FIFO */
    int64_t jit_t;                      /* jitter is piecewise linear: */
    double jit_a, jit_b;                /* a at jit_t, b one step later */
} Pair;

/* What all parts work on; defined in path.c. */
extern Host hosts[MAXHOST];
extern Pair pairs[MAXHOST][MAXHOST];    /* [src][dst] */
extern int n_hosts;
extern int16_t by_addr[1 << 16];        /* host number by the low 16 bits of its address */
extern size_t in_flight;
extern struct Punctuality { uint64_t delivered, late; int64_t max_ns, sum_ns; } punctuality;

double uniform(uint64_t *state);
int64_t next_due_ns(void);              /* ns from now to the next packet's time; -1: none waits */
void run_due(void);                     /* deliver what is due */
void pump(Host *h);                     /* take in what a host has sent */
int script(FILE *in, int setup, FILE *out);
void print_stats(FILE *f);
void control(int fd);
