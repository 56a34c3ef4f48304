package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
)

// Up to 0.1 one daemon served all devices, and an upgrade had it start the next one as its child:
// which got ready, was told to go on once the first had left its devices, and reported how many it
// served. A daemon that is started so takes over from it, once and for all: its devices get
// servers.
const (
	predecessorVariable = "HOLDFAST_HEIR"
	predecessorGo       = 3 // descriptor: "go" comes from it
	predecessorReport   = 4 // descriptor: "ready" and "serving WAITING LIVE" go to it
	predecessorSocket   = 5 // descriptor: the control socket

	// predecessorPatience is how long it is kept waiting for devices that can't be served at once.
	predecessorPatience = 10 * time.Second
	// predecessorLimit is how long it waits for the report: less than its 60 s.
	predecessorLimit = 50 * time.Second
)

// predecessor is the daemon that this one takes over from; nil: there is none.
type predecessor struct{ report *os.File }

// succeedPredecessor says that this daemon is ready, and waits for its turn. Then the control
// socket is as if a service manager had passed it.
func succeedPredecessor() (*predecessor, error) {
	if os.Getenv(predecessorVariable) == "" {
		return nil, nil
	}
	os.Unsetenv(predecessorVariable)
	turn := os.NewFile(predecessorGo, "go")
	p := &predecessor{report: os.NewFile(predecessorReport, "report")}
	unix.CloseOnExec(predecessorReport)
	fmt.Fprintln(p.report, "ready")
	line, _ := bufio.NewReader(turn).ReadString('\n')
	turn.Close()
	if line != "go\n" {
		return nil, api.Errorf(api.CodeBusy, "the daemon that was to be followed goes on by itself")
	}
	if err := passSocket(predecessorSocket); err != nil {
		return nil, fmt.Errorf("the control socket of the daemon before: %w", err)
	}
	unix.Close(predecessorSocket)
	return p, nil
}

// passSocket has a listening socket be passed to this process, or to what it executes, as a service
// manager does (sd_listen_fds(3)).
func passSocket(fd int) error {
	const first = 3 // SD_LISTEN_FDS_START
	var err error
	if fd == first {
		_, err = unix.FcntlInt(first, unix.F_SETFD, 0)
	} else {
		err = unix.Dup3(fd, first, 0)
	}
	if err != nil {
		return err
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	os.Setenv("LISTEN_FDS", "1")
	os.Unsetenv("LISTEN_FDNAMES")
	return nil
}

// notify reports what is served, once everything was tried. What has a server is reported as live:
// who hears of nothing live takes everything back, and what has a server can't be taken back.
func (p *predecessor) notify(runDir string) {
	if p == nil {
		return
	}
	defer p.report.Close()
	c := api.NewClient(runDir)
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), predecessorPatience)
		snap, err := c.Brief(ctx)
		cancel()
		if err != nil {
			if time.Since(begin) > predecessorLimit {
				return
			}
			continue
		}
		waiting, live := 0, 0
		for i := range snap.Devices {
			d := &snap.Devices[i]
			if d.Waits() || d.Server != nil && d.Server.State == api.ServerStarting {
				waiting++
			}
			if d.Path != "" && !d.Waits() || d.Server != nil && d.Server.State != api.ServerNone {
				live++
			}
		}
		if waiting == 0 || time.Since(begin) > predecessorPatience && live > 0 || time.Since(begin) > predecessorLimit {
			fmt.Fprintln(p.report, "serving", waiting, live)
			return
		}
	}
}
