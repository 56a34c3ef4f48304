package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/failpoint"
	"holdfast/internal/spawner"
)

// An upgrade has another process follow this one, with the devices live. The heir is
// started as a child and gets ready; then this daemon leaves its devices, lets go of
// everything, and says go; the heir takes it all as after a death, and says that it serves.
// Only then does this one end. Whatever goes wrong before that, it takes everything back.
const (
	heirVariable = "HOLDFAST_HEIR" // set for the heir, to know what it is: one of
	heirOwns     = "owns"          // the control socket is the daemons'
	heirBorrows  = "borrows"       // it is a service manager's, and stays at the end
	heirGo       = 3               // descriptor: it may begin
	heirReport   = 4               // descriptor: what it reports
	heirSocket   = 5               // descriptor: the listening control socket

	readyLimit = 30 * time.Second // until the heir is ready
	turnLimit  = 10 * time.Second // until the operations under way have ended
	leaveDrain = 5 * time.Second  // for requests under way
	serveLimit = 60 * time.Second // until the heir serves what it can
)

// Upgrade has another process take over. After a success this daemon is done: see
// HandedOver.
func (d *Daemon) Upgrade(ctx context.Context, r api.UpgradeRequest) (*api.UpgradeResult, error) {
	if !d.upgrading.CompareAndSwap(false, true) {
		return nil, api.Errorf(api.CodeBusy, "an upgrade is under way already")
	}
	res, err := d.upgrade(ctx, r)
	if err != nil {
		d.upgrading.Store(false)
		d.tell("", api.EventUpgradeFailed, "%v", err)
		return nil, api.Errorf(api.CodeInternal, "%w", err)
	}
	d.log.Info().Int("pid", res.PID).Float64("pause_ms", res.PauseMS).Msg("another process has taken over")
	return res, nil
}

// UpgradeOn upgrades whenever a signal comes.
func (d *Daemon) UpgradeOn(signals <-chan os.Signal) {
	for range signals {
		// Why it failed is an event, and in the log.
		_, _ = d.Upgrade(context.Background(), api.UpgradeRequest{})
		if d.isGone() {
			d.handOver()
			return
		}
	}
}

// HandedOver is closed when this daemon has nothing left to do: an heir serves, or, if Heir is
// 0, has failed in a way that leaves nobody who does.
func (d *Daemon) HandedOver() <-chan struct{} { return d.handedOver }

// Heir is the process number of the heir, once there is one.
func (d *Daemon) Heir() int {
	d.cfgMu.Lock()
	defer d.cfgMu.Unlock()
	return d.heirPID
}

// handOver ends this daemon.
func (d *Daemon) handOver() { d.handOverOnce.Do(func() { close(d.handedOver) }) }

func (d *Daemon) upgrade(ctx context.Context, r api.UpgradeRequest) (*api.UpgradeResult, error) {
	binary := r.Binary
	if binary == "" {
		binary = d.cfg.Binary
	}
	if !filepath.IsAbs(binary) {
		return nil, fmt.Errorf("binary %q: the path is not absolute", binary)
	}
	h, err := d.startHeir(binary)
	if err != nil {
		return nil, fmt.Errorf("the new daemon can't be started: %w", err)
	}
	defer h.close()
	if _, err := h.hears("ready", readyLimit); err != nil {
		h.kill()
		return nil, fmt.Errorf("the new daemon does not get ready, and nothing has changed: %w", err)
	}
	slots, err := d.stopOperations(ctx)
	defer func() {
		for _, s := range slots {
			d.release(s)
		}
	}()
	if err != nil {
		h.kill()
		return nil, err
	}
	if err := d.examineAll(slots); err != nil {
		h.kill()
		return nil, fmt.Errorf("the new daemon could not take every device over, and nothing has changed: %w", err)
	}
	begin := time.Now()
	left, err := d.leaveAll(slots)
	if err != nil {
		h.kill()
		return nil, fmt.Errorf("not every device can be left, and this daemon goes on: %w%s", err, d.takeBack(left))
	}
	failpoint.Hit("upgrade-left")
	d.letGo()
	fmt.Fprintln(h.to, "go")
	failpoint.Hit("upgrade-released")
	said, err := h.hears("serving", serveLimit)
	pause := time.Since(begin)
	var waiting, live int
	if n, _ := fmt.Sscan(said, &waiting, &live); err == nil && n == 2 && live == 0 && len(left) > 0 {
		err = fmt.Errorf("it can serve none of the %d devices; its log says why", len(left))
	}
	if err != nil {
		h.kill()
		if err := d.takeHold(); err != nil {
			// Whoever starts daemons starts the next one. This one would only be in its way.
			d.cfgMu.Lock()
			d.gone = true
			d.cfgMu.Unlock()
			return nil, fmt.Errorf("the new daemon has failed, and this one can't go on and ends: %w; start it again, its devices wait", err)
		}
		d.readAgain(left)
		return nil, fmt.Errorf("the new daemon does not serve, and this one goes on: %w%s", err, d.takeBack(left))
	}
	res := &api.UpgradeResult{PID: h.p.PID, Devices: len(left), Waiting: waiting, PauseMS: float64(pause.Microseconds()) / 1000}
	d.cfgMu.Lock()
	d.gone, d.heirPID = true, res.PID
	d.cfgMu.Unlock()
	// What waits for its recovery, or to be created again, is the heir's, too.
	d.stopCreating()
	d.endLife()
	return res, nil
}

// heir is the process that is to follow.
type heir struct {
	p    *spawner.Process
	to   *os.File
	said chan string // lines that it reports; closed at their end
	from *os.File
}

func (d *Daemon) startHeir(binary string) (*heir, error) {
	goRead, goWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer goRead.Close()
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		goWrite.Close()
		return nil, err
	}
	defer reportWrite.Close()
	h := &heir{to: goWrite, from: reportRead, said: make(chan string, 8)}
	socket, err := d.listener.(*net.UnixListener).File()
	if err != nil {
		h.close()
		return nil, err
	}
	defer socket.Close()
	socketIs := heirBorrows
	if d.socketOwned {
		socketIs = heirOwns
	}
	h.p, err = d.cfg.Spawner.Start(spawner.Command{Path: binary, Args: d.cfg.Args,
		Env: append(os.Environ(), heirVariable+"="+socketIs), Files: []*os.File{os.Stdout, os.Stderr, goRead, reportWrite, socket}})
	d.keepFromBlocking(socket)
	if err != nil {
		h.close()
		return nil, err
	}
	go func() {
		for lines := bufio.NewScanner(reportRead); lines.Scan(); {
			h.said <- lines.Text()
		}
		close(h.said)
	}()
	return h, nil
}

// keepFromBlocking mends what handing the socket over (os.File.Fd) has done to it, for all
// who have it: a goroutine that accepts would sit in the system call, where no Close reaches
// it. One that does so by now gets somebody to accept.
func (d *Daemon) keepFromBlocking(socket *os.File) {
	if err := unix.SetNonblock(int(socket.Fd()), true); err != nil {
		d.log.Warn().Err(err).Msg("the control socket blocks")
	}
	if c, err := net.DialTimeout("unix", d.SocketPath(), time.Second); err == nil {
		c.Close()
	}
}

// hears waits for a line that begins with a word, and gives the rest.
func (h *heir) hears(word string, limit time.Duration) (string, error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		select {
		case line, ok := <-h.said:
			if !ok {
				return "", errors.New("it has ended; its log says why")
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return rest, nil
			}
		case <-t.C:
			return "", fmt.Errorf("no sign of it within %v", limit)
		}
	}
}

// kill ends an heir that failed, and waits for its end. It may hang in storage.
func (h *heir) kill() {
	h.p.Signal(unix.SIGKILL)
	select {
	case <-h.p.Ended():
	case <-time.After(turnLimit):
	}
}

func (h *heir) close() {
	h.to.Close()
	h.from.Close()
}

// stopOperations takes the token of every name, so that nothing changes any more.
func (d *Daemon) stopOperations(ctx context.Context) (slots []*slot, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	d.mu.Lock()
	var names []string
	for name := range d.slots {
		names = append(names, name)
	}
	stopping := d.stopping
	d.mu.Unlock()
	if stopping {
		return nil, api.Errorf(api.CodeStopping, "the daemon is stopping")
	}
	for _, name := range names {
		s, err := d.acquire(ctx, name)
		if err != nil {
			return slots, err
		}
		slots = append(slots, s)
	}
	return slots, nil
}

// leaveAll leaves every device to the next server, all at once, and gives those that were left.
func (d *Daemon) leaveAll(slots []*slot) (left []*slot, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveDrain+recoverTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, s := range slots {
		d.mu.Lock()
		dev, failing := s.dev, s.failing
		d.mu.Unlock()
		if dev == nil && failing == nil {
			continue
		}
		wg.Go(func() {
			e := d.leave(ctx, s, dev, failing)
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, e)
			if s.dev == nil {
				left = append(left, s)
			}
		})
	}
	wg.Wait()
	return left, err
}

func (d *Daemon) leave(ctx context.Context, s *slot, dev live, failing failing) error {
	if failing != nil {
		if err := failing.Leave(ctx); err != nil {
			return err
		}
		d.set(s, func() { s.failing = nil })
		return nil
	}
	// Now, not when the keeper of the device comes to it.
	d.noteStandby(s, dev)
	if err := dev.Leave(ctx, leaveDrain); err != nil {
		return err
	}
	// With what an error during the last requests has brought about, of which the keeper can't
	// tell any more; and no other change of the record may come after the heir has read it.
	s.recMu.Lock()
	defer s.recMu.Unlock()
	d.leftInOrder(s, dev)
	d.set(s, func() { s.dev, s.phase, s.problem = nil, api.StateRecovering, "it was left for an upgrade" })
	return nil
}

// letGo gives up everything that the heir needs.
func (d *Daemon) letGo() {
	if d.treeServer != nil {
		if err := d.treeServer.Unmount(); err != nil {
			d.log.Warn().Msgf("the attribute tree: %v", err) // the heir mounts it anew
		}
		d.treeServer = nil
	}
	if d.metricsServer != nil {
		d.metricsServer.Close()
	}
	// Clients wait in the socket's queue for who accepts them next.
	d.listener.Close()
	d.releaseKey()
	for _, l := range d.locks {
		l.Release()
	}
	d.locks = nil
}

// takeHold takes it back.
func (d *Daemon) takeHold() error {
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := d.lockDirs()
		if err == nil {
			break
		}
		if api.CodeOf(err) != api.CodeBusy || time.Since(begin) > turnLimit {
			return err
		}
	}
	d.holdKey()
	l, err := d.keptSocket()
	if err != nil {
		return err
	}
	d.cfgMu.Lock()
	d.listener = l
	d.cfgMu.Unlock()
	select {
	case d.taken <- struct{}{}:
	default:
	}
	if err := d.listenMetrics(d.metricsHandler()); err != nil {
		d.log.Warn().Err(err).Msg("no metrics")
	}
	d.mountTree()
	return nil
}

// keptSocket is the control socket once more.
func (d *Daemon) keptSocket() (net.Listener, error) {
	l, err := net.FileListener(d.socketFile)
	if err == nil {
		l.(*net.UnixListener).SetUnlinkOnClose(false)
	}
	return l, err
}

// inheritance is what an heir has of the daemon before it; nil: it is none.
type inheritance struct {
	from, report *os.File
	socket       *net.UnixListener
	owned        bool // the socket, see controlSocket
}

func inherit() (*inheritance, error) {
	is := os.Getenv(heirVariable)
	if is == "" {
		return nil, nil
	}
	os.Unsetenv(heirVariable)
	for fd := heirGo; fd <= heirSocket; fd++ {
		unix.CloseOnExec(fd)
	}
	i := &inheritance{from: os.NewFile(heirGo, "go"), report: os.NewFile(heirReport, "report"), owned: is == heirOwns}
	f := os.NewFile(heirSocket, "control socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the control socket of the daemon before: %w", err)
	}
	i.socket = l.(*net.UnixListener)
	i.socket.SetUnlinkOnClose(false)
	return i, nil
}

// wait says that this daemon is ready, and waits for its turn.
func (i *inheritance) wait() error {
	if i == nil {
		return nil
	}
	fmt.Fprintln(i.report, "ready")
	defer i.from.Close()
	if line, _ := bufio.NewReader(i.from).ReadString('\n'); line != "go\n" {
		return api.Errorf(api.CodeBusy, "the daemon that was to be followed goes on by itself")
	}
	return nil
}

// tell says what is served, once everything was tried.
func (i *inheritance) tell(d *Daemon) {
	if i == nil {
		return
	}
	defer i.report.Close()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		waiting, live := 0, 0
		d.mu.Lock()
		for _, s := range d.slots {
			switch {
			case s.phase == api.StateRecovering:
				waiting++
			case s.dev != nil:
				live++
			}
		}
		d.mu.Unlock()
		if waiting == 0 || time.Since(begin) > recoverTime {
			fmt.Fprintln(i.report, "serving", waiting, live)
			return
		}
	}
}
