package manager

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Bounds of a hook: its time, the grace after SIGTERM, and what of its output goes to the log.
const (
	hookTime  = 30 * time.Second
	hookGrace = 5 * time.Second
	hookLines = 100
	hookLine  = 1024
)

// shell executes hooks. To execute a program that lies on storage which hangs takes as long as
// that, and holds up who does it: with clone(CLONE_VFORK), as Go does it, that is this whole
// process, whose garbage collector waits for the thread. So another program does it.
const shell = "/bin/sh"

// execute runs a program to its end or to the end of its time, in a process group of its own,
// all of which ends with it. started is called once it was started or could not be.
func execute(log zerolog.Logger, name string, h hook, started func()) error {
	r, w, err := os.Pipe()
	if err != nil {
		started()
		return err
	}
	cmd := exec.Command(shell, "-c", `exec "$0"`, h.path)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = h.env, "/", w, w
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	started()
	if err != nil {
		r.Close()
		return err
	}
	go logOutput(log, name, h.path, r)
	group := -cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer unix.Kill(group, unix.SIGKILL) // what it left running
	select {
	case err := <-ended:
		return err
	case <-time.After(hookTime):
	}
	unix.Kill(group, unix.SIGTERM)
	select {
	case <-ended:
	case <-time.After(hookGrace):
		unix.Kill(group, unix.SIGKILL)
		select {
		case <-ended:
		case <-time.After(hookGrace): // the next one is not to wait for storage that hangs
			return fmt.Errorf("it took longer than %v, and can't be ended: process %d hangs in the kernel, perhaps in storage", hookTime, cmd.Process.Pid)
		}
	}
	return fmt.Errorf("it took longer than %v and was ended", hookTime)
}

// logOutput logs a program's first lines and swallows the rest.
func logOutput(log zerolog.Logger, name, path string, r io.ReadCloser) {
	defer r.Close()
	in := bufio.NewReaderSize(r, hookLine)
	for n := 0; ; n++ {
		line, _, err := in.ReadLine()
		if err != nil {
			return
		}
		if n < hookLines {
			log.Info().Str("device", name).Str("hook", path).Msg(string(line))
		}
	}
}
