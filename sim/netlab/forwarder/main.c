/* main.c - start and event loop; see forwarder.h. */
#define _GNU_SOURCE
#include "forwarder.h"
#include <err.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(1, "usage: netlab-fwd CONFIG CONTROL_SOCKET");
    memset(by_addr, -1, sizeof by_addr);
    FILE *f = fopen(argv[1], "re");
    if (!f || script(f, 1, stderr))
        err(1, "%s", argv[1]);
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < 3; i++)
        sigaddset(&set, (int[]){ SIGINT, SIGTERM, SIGUSR1 }[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int ep = epoll_create1(EPOLL_CLOEXEC), sfd = signalfd(-1, &set, SFD_CLOEXEC);
    int ctl = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    snprintf(sa.sun_path, sizeof sa.sun_path, "%s", argv[2]);
    if (ctl < 0 || bind(ctl, (struct sockaddr *)&sa, sizeof sa))
        err(1, "control socket %s", sa.sun_path);
    for (int i = 0; i < n_hosts + 3; i++) {
        int fd = i < n_hosts ? hosts[i].fd : (int[]){ ctl, sfd, 0 }[i - n_hosts];
        if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){ EPOLLIN, { .u32 = i } }))
            err(1, "epoll_ctl");
    }
    prctl(PR_SET_TIMERSLACK, 1UL);
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 10 });
    puts("ready");
    fflush(stdout);

    for (int go = 1; go;) {
        struct epoll_event ev[64];
        struct timespec ts = { 0 };
        run_due();
        int64_t d = next_due_ns();
        if (d > 0)
            ts = (struct timespec){ d / 1000000000, d % 1000000000 };
        int n = epoll_pwait2(ep, ev, 64, d < 0 ? NULL : &ts, NULL);
        for (int i = 0; i < n; i++) {
            int what = (int)ev[i].data.u32 - n_hosts;
            struct signalfd_siginfo si = { 0 };
            if (what < 0)
                pump(&hosts[what + n_hosts]);
            else if (what == 0)
                control(ctl);
            else if (what == 1 && read(sfd, &si, sizeof si) == sizeof si && si.ssi_signo == SIGUSR1)
                print_stats(stderr);
            else if (what == 1 || read(0, &(char){ 0 }, 1) <= 0)
                go = 0;
            run_due();
        }
    }
    print_stats(stderr);
    unlink(sa.sun_path);
    return 0;
}
