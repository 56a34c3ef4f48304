package spawner

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"net"
	"os"
	"os/signal"
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
	// Its name is that of its file, "exe", and the one that it was started for has another.
	_ = os.WriteFile("/proc/self/comm", []byte("holdfast-spawn"), 0)
	unix.CloseOnExec(socket)
	f := os.NewFile(socket, "socket")
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("this command is for holdfast's own use: descriptor %d: %w", socket, err)
	}
	f.Close()
	conn := c.(*net.UnixConn)
	tell := func(a answer) error {
		var b bytes.Buffer
		err := gob.NewEncoder(&b).Encode(a)
		if err == nil {
			_, err = conn.Write(b.Bytes())
		}
		return err
	}
	if err := tell(answer{}); err != nil {
		return err
	}
	for buf := make([]byte, maxMessage); ; {
		fds, n, err := receive(conn, buf)
		if err != nil {
			return nil
		}
		var r request
		if err := gob.NewDecoder(bytes.NewReader(buf[:n])).Decode(&r); err != nil {
			return err
		}
		c := Command{Path: r.Path, Args: r.Args, Env: r.Env, Dir: r.Dir, Group: r.Group}
		for _, fd := range fds {
			c.Files = append(c.Files, os.NewFile(uintptr(fd), "passed"))
		}
		a := answer{ID: r.ID}
		if process, err := c.begin(unix.CLONE_PARENT); err != nil {
			a.Err = err.Error()
		} else {
			a.PID = process.Pid
			process.Release()
		}
		for _, f := range c.Files {
			f.Close()
		}
		if tell(a) != nil {
			return nil // without a reader nobody wants to know
		}
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
