package faultfs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// childEnv tells the child what it is to serve.
const childEnv = "HOLDFAST_FAULTFS"

// Options are what a mount is like.
type Options struct {
	// Locks passes locks on to the files behind, where other mounts of the
	// directory see them.
	Locks bool
	// AsyncIO lets the kernel send direct I/O that a caller doesn't wait for
	// (io_uring, AIO) without a thread waiting in its stead.
	AsyncIO bool
	// OneWriter leaves it to the opener to keep the page cache out (O_DIRECT), as most
	// FUSE file systems do. The kernel lets one write at a time through to a file
	// then. See the package's text on short transfers.
	OneWriter bool
	// Renumber gives the files other inode numbers than any mount before, as FAT and many
	// FUSE servers do.
	Renumber bool
}

// Storage is a mount. Its methods may be called at any time from anywhere, but
// for the tests' sake they panic when the child is gone unexpectedly.
type Storage struct {
	Dir     string
	Backing string

	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder

	mu    sync.Mutex
	ended bool
}

type setup struct {
	Backing, Dir string
	Options      Options
}

type request struct {
	What  string // add, remove, dead, state
	Rule  Rule
	ID    int
	Errno unix.Errno
}

type answer struct {
	Err    string
	ID     int
	Rules  []RuleState
	Counts map[Op]int
}

// Mount serves a directory at another one, which must be there and may be the
// mount of a child that was killed.
func Mount(backing, dir string, o Options) (*Storage, error) {
	var st unix.Stat_t
	for unix.Stat(dir, &st) == unix.ENOTCONN {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmounting what a dead child left at %s: %w", dir, err)
		}
	}
	config, err := json.Marshal(setup{backing, dir, o})
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Storage{Dir: dir, Backing: backing, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	var a answer
	if err := s.out.Decode(&a); err != nil {
		a.Err = fmt.Sprintf("the child says nothing (is faultfs.Child in TestMain?): %v", err)
	}
	if a.Err != "" {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, errors.New("faultfs: " + a.Err)
	}
	return s, nil
}

// Add adds a rule and gives its number.
func (s *Storage) Add(r Rule) int { return s.ask(request{What: "add", Rule: r}).ID }

// Remove ends a rule. What hangs by it is carried out.
func (s *Storage) Remove(id int) { s.ask(request{What: "remove", ID: id}) }

// Drop ends a rule. What hangs by it is not carried out, and answers errno.
func (s *Storage) Drop(id int, errno unix.Errno) {
	s.ask(request{What: "remove", ID: id, Errno: errno})
}

// Clear ends all rules, as Remove does.
func (s *Storage) Clear() { s.ask(request{What: "remove"}) }

// Dead makes everything answer errno, but for what a rule has hanging; 0: the
// storage works again.
func (s *Storage) Dead(errno unix.Errno) { s.ask(request{What: "dead", Errno: errno}) }

// Rules are those that there are, in order.
func (s *Storage) Rules() []RuleState { return s.ask(request{What: "state"}).Rules }

// Rule is the state of one, zero if it is gone.
func (s *Storage) Rule(id int) RuleState {
	for _, r := range s.Rules() {
		if r.ID == id {
			return r
		}
	}
	return RuleState{}
}

// Counts says how many operations of each kind there were.
func (s *Storage) Counts() map[Op]int { return s.ask(request{What: "state"}).Counts }

func (s *Storage) ask(r request) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var a answer
	if s.ended {
		panic("faultfs: the child was ended")
	}
	err := s.in.Encode(r)
	if err == nil {
		err = s.out.Decode(&a)
	}
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err != nil {
		panic(fmt.Sprintf("faultfs: %s %+v: %v", r.What, r, err))
	}
	return a
}

// Kill kills the child and leaves its mount, where everything answers
// ENOTCONN.
func (s *Storage) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
}

// Close kills the child and takes the mount away, whoever uses it.
func (s *Storage) Close() error {
	s.Kill()
	return unix.Unmount(s.Dir, unix.MNT_DETACH)
}

// Child serves, if this process was started for that, until it is killed or its
// parent ends. Else it returns.
func Child() {
	config := os.Getenv(childEnv)
	if config == "" {
		return
	}
	var c setup
	err := json.Unmarshal([]byte(config), &c)
	f := newFaults()
	if err == nil {
		err = serve(c, f)
	}
	out := json.NewEncoder(os.Stdout)
	if err != nil {
		out.Encode(answer{Err: err.Error()})
		os.Exit(1)
	}
	out.Encode(answer{})
	in := json.NewDecoder(os.Stdin)
	for {
		var r request
		if in.Decode(&r) != nil {
			// The parent is gone: nobody else would unmount.
			unix.Unmount(c.Dir, unix.MNT_DETACH)
			os.Exit(0)
		}
		var a answer
		switch r.What {
		case "add":
			a.ID = f.add(r.Rule)
		case "remove":
			if !f.remove(r.ID, r.Errno) && r.ID != 0 {
				a.Err = fmt.Sprintf("there is no rule %d", r.ID)
			}
		case "dead":
			f.setDead(r.Errno)
		case "state":
			a.Rules, a.Counts = f.states()
		}
		out.Encode(a)
	}
}

func serve(c setup, f *faults) error {
	root, err := newRoot(c.Backing, f, &c.Options)
	if err != nil {
		return err
	}
	zero := time.Duration(0)
	o := fs.Options{EntryTimeout: &zero, AttrTimeout: &zero, NullPermissions: true}
	o.MountOptions = fuse.MountOptions{
		Name: "faultfs", FsName: "faultfs",
		AllowOther: true, Options: []string{"default_permissions"},
		DirectMountStrict: true,
		MaxWrite:          1 << 20,
		// Of asynchronous requests: hanging ones must not keep others out.
		MaxBackground: 4096, CongestionThreshold: 4096,
		DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
		EnableLocks: c.Options.Locks,
	}
	if c.Options.AsyncIO {
		o.ExtraCapabilities = fuse.CAP_ASYNC_DIO
	}
	if _, err := fs.Mount(c.Dir, root, &o); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", c.Backing, c.Dir, err)
	}
	return nil
}
