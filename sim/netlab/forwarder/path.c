/* path.c - what happens to a packet between two hosts; see forwarder.h. */
#define _GNU_SOURCE
#include "forwarder.h"
#include <arpa/inet.h>
#include <err.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BUFSZ = 2032, BATCH = 32, MAX_IN_FLIGHT = 1 << 18 /* 512 MB */ };
enum { MIN_QUEUE_BYTES = 15000 };       /* a queue holds at least ten full packets */
enum { JITTER_STEP = 20000000, LATE_LIMIT = 300000 };                       /* ns */
enum { SLACK = 50000 };                 /* deliver this early to batch wake-ups, ns */

typedef struct {
    uint16_t len, dst, at_downlink;
    uint8_t data[BUFSZ];
} Packet;

typedef struct { int64_t t; Packet *p; } Event;

Host hosts[MAXHOST];
Pair pairs[MAXHOST][MAXHOST];
int n_hosts;
int16_t by_addr[1 << 16];
size_t in_flight;
struct Punctuality punctuality;
static Event *heap;
static size_t heap_cap;

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

double uniform(uint64_t *s)      /* xorshift64*, in [0, 1) */
{
    *s ^= *s >> 12, *s ^= *s << 25, *s ^= *s >> 27;
    return (*s * 0x2545f4914f6cdd1du >> 11) * 0x1p-53;
}

static void heap_push(int64_t t, Packet *p)
{
    if (in_flight == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 4096;
        if (!(heap = realloc(heap, heap_cap * sizeof *heap)))
            err(1, "heap");
    }
    Event e = { t, p };
    size_t i = in_flight++;
    for (; i && e.t < heap[(i - 1) / 2].t; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

static Event heap_pop(void)
{
    Event top = heap[0], e = heap[--in_flight];
    size_t i = 0, c;
    for (; (c = 2 * i + 1) < in_flight; i = c) {
        if (c + 1 < in_flight && heap[c + 1].t < heap[c].t)
            c++;
        if (heap[c].t >= e.t)
            break;
        heap[i] = heap[c];
    }
    heap[i] = e;
    return top;
}

/* When `len` bytes offered at `t` have passed a line; -1 if its queue is full. */
static int64_t shape(int64_t *line_free, double mbit, double queue_ms, int64_t t, int len)
{
    if (mbit <= 0)
        return t;
    int64_t wait = *line_free > t ? *line_free - t : 0;
    if (wait > fmax(queue_ms * 1e6, MIN_QUEUE_BYTES * 8e3 / mbit))
        return -1;
    return *line_free = t + wait + (int64_t)(len * 8e3 / mbit + 0.5);
}

/* Slowly varying noise in [-p->jitter, p->jitter]; independent for sparse packets. */
static int64_t jitter(Pair *p, int64_t t)
{
    for (int k = 0; k < 2 && t >= p->jit_t + JITTER_STEP; k++) {
        p->jit_a = p->jit_b;
        p->jit_b = 2 * uniform(&p->rng) - 1;
        p->jit_t = k ? t : p->jit_t + JITTER_STEP;      /* k = 1: after a gap */
    }
    return p->jitter * (p->jit_a + (p->jit_b - p->jit_a) * (t - p->jit_t) / JITTER_STEP);
}

/* A packet enters the emulated network.  Returns -1, or the counter of its drop. */
static int ingress(Host *src, Packet *pkt, int64_t now)
{
    uint32_t daddr;
    memcpy(&daddr, pkt->data + 16, 4);
    int dst = by_addr[ntohl(daddr) & 0xffff];
    if (pkt->len < 20 || pkt->data[0] >> 4 != 4 || dst < 0 || hosts[dst].addr != daddr)
        return DROP_ROUTE;
    if (in_flight >= MAX_IN_FLIGHT)
        return DROP_MEMORY;
    Pair *p = &pairs[src - hosts][dst];
    int64_t t = shape(&src->up_free, src->v[UP], src->v[QUEUE], now, pkt->len), at;
    if (t < 0)
        return DROP_UP;
    if (p->loss > 0 && uniform(&p->rng) < p->loss)
        return DROP_LOSS;
    at = t + p->delay;
    if (p->jitter) {
        at += jitter(p, t);
        at = p->last = at < t ? t : at <= p->last ? p->last + 1 : at;
    }
    pkt->dst = dst;
    pkt->at_downlink = 0;
    heap_push(at, pkt);
    return -1;
}

static void deliver(Host *h, Packet *pkt, int64_t late)
{
    int ok = write(h->fd, pkt->data, pkt->len) == pkt->len;
    h->n[ok ? RX_PKTS : DROP_WRITE]++;
    h->n[RX_BYTES] += ok ? pkt->len : 0;
    punctuality.delivered++;
    punctuality.sum_ns += late > 0 ? late : 0;
    punctuality.max_ns = late > punctuality.max_ns ? late : punctuality.max_ns;
    punctuality.late += late > LATE_LIMIT;
    free(pkt);
}

void run_due(void)
{
    int64_t now;
    while (in_flight && heap[0].t <= (now = clock_ns()) + SLACK) {
        Event e = heap_pop();
        Host *h = &hosts[e.p->dst];
        int64_t t = e.t;
        if (!e.p->at_downlink) {
            e.p->at_downlink = 1;
            t = shape(&h->down_free, h->v[DOWN], h->v[QUEUE], e.t, e.p->len);
        }
        if (t < 0) {
            h->n[DROP_DOWN]++;
            free(e.p);
        } else if (t > now + SLACK || (in_flight && t > heap[0].t)) {
            heap_push(t, e.p);
        } else {
            deliver(h, e.p, now - t);
        }
    }
}

void pump(Host *h)
{
    static Packet *p;                   /* kept while nothing was read into it */
    for (int i = 0; i < BATCH; i++) {
        if (!p && !(p = malloc(sizeof *p)))
            err(1, "packet");
        ssize_t n = read(h->fd, p->data, BUFSZ);
        if (n <= 0)
            return;
        p->len = n;
        h->n[TX_PKTS]++;
        h->n[TX_BYTES] += n;
        int drop = ingress(h, p, clock_ns());
        if (drop < 0)
            p = NULL;
        else
            h->n[drop]++;
    }
}
int64_t next_due_ns(void)
{
    int64_t wait = in_flight ? heap[0].t - clock_ns() : -1;
    return in_flight && wait < 0 ? 0 : wait;
}
