package spawner

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Child is the spawner, if this process was started as one, until the other end of its
// socket is closed. Else it returns. To be called first thing in main.
func Child() {
	if len(os.Args) != 2 || os.Args[1] != argument {
		return
	}
	if err := serve(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: the process that starts programs: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve() error {
	// What ends the other process, or its terminal or service, is not for this one, which
	// it may need until its own end. Caught, and not ignored: what is ignored stays so in
	// programs.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	unix.CloseOnExec(socket)
	f := os.NewFile(socket, "socket")
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("this command is for holdfast's own use: descriptor %d: %w", socket, err)
	}
	f.Close()
	conn := c.(*net.UnixConn)
	var mu sync.Mutex
	tell := func(a answer, rights []byte) {
		mu.Lock()
		defer mu.Unlock()
		var b bytes.Buffer
		if err := gob.NewEncoder(&b).Encode(a); err == nil {
			// Without a reader nobody wants to know.
			conn.WriteMsgUnix(b.Bytes(), rights, nil)
		}
	}
	tell(answer{}, nil)
	for buf := make([]byte, maxMessage); ; {
		fds, n, err := receive(conn, buf)
		if err != nil {
			return nil
		}
		var r request
		err = gob.NewDecoder(bytes.NewReader(buf[:n])).Decode(&r)
		cm := Command{Path: r.Path, Args: r.Args, Env: r.Env, Dir: r.Dir, Group: r.Group}
		for _, fd := range fds {
			cm.Files = append(cm.Files, os.NewFile(uintptr(fd), "passed"))
		}
		var cmd *exec.Cmd
		pidfd := -1
		if err == nil {
			cmd, pidfd, err = cm.begin()
		}
		for _, f := range cm.Files {
			f.Close()
		}
		if err != nil {
			tell(answer{ID: r.ID, Err: err.Error()}, nil)
			continue
		}
		tell(answer{ID: r.ID, PID: cmd.Process.Pid}, unix.UnixRights(pidfd))
		unix.Close(pidfd)
		go func() {
			a := answer{ID: r.ID, Ended: true}
			if err := cmd.Wait(); err != nil {
				a.Err = err.Error()
			}
			tell(a, nil)
		}()
	}
}

// receive takes one message and the descriptors that come with it, which are close-on-exec.
func receive(conn *net.UnixConn, buf []byte) (fds []int, n int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, 0, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		got, _ := syscall.ParseUnixRights(&m)
		fds = append(fds, got...)
	}
	return fds, n, err
}
