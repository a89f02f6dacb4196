/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Holds a pod's namespaces open: waits for SIGINT or SIGTERM, and meanwhile reaps children. With a shared PID
 * namespace this is the pod's PID 1, and every orphan of the pod becomes its child.
 *
 * The signals stay blocked and are taken one at a time with sigwaitinfo(), so none is lost between two waits, and
 * PID 1's rule that unhandled signals are dropped does not apply (the kernel never drops a blocked signal).
 */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

int main(void)
{
    sigset_t awaited;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &awaited, NULL) != 0) {
        perror("pause: cannot block signals");
        return 1;
    }
    for (;;) {
        int received = sigwaitinfo(&awaited, NULL);
        if (received == SIGINT || received == SIGTERM)
            return 0;
        /* SIGCHLD, or an interrupted wait: one SIGCHLD can stand for many children. */
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
    }
}
