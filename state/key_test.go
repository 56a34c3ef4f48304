package state

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

func createKey(t *testing.T, run string) *Key {
	t.Helper()
	k, err := CreateKey(run, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Release)
	return k
}

func openKey(t *testing.T, run string, log *bytes.Buffer) *Key {
	t.Helper()
	l := zerolog.Nop()
	if log != nil {
		l = zerolog.New(log)
	}
	k, err := OpenKey(run, l)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func set(t *testing.T, k *Key, on bool) {
	t.Helper()
	if err := k.Set(on); err != nil {
		t.Fatal(err)
	}
}

func wantKey(t *testing.T, k *Key, want uint32, when string) {
	t.Helper()
	if got := k.Load(); got != want {
		t.Errorf("%s: the check reads %d, want %d", when, got, want)
	}
}

func init() {
	// A server: it says what it sees when it is asked ("?"), and when it is woken.
	roles["key"] = func(dir string) {
		k, err := OpenKey(dir, zerolog.Nop())
		if err != nil {
			fmt.Println(err)
			return
		}
		lines := make(chan string, 1024)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go k.Watch(ctx, func() { lines <- fmt.Sprint("woken ", k.Load()) })
		go func() {
			for in := bufio.NewScanner(os.Stdin); in.Scan(); {
				lines <- fmt.Sprint("asked ", k.Load())
			}
			close(lines)
		}()
		for l := range lines {
			fmt.Println(l)
		}
	}
}

// TestKeyOfManyProcesses: every process sees a change at once, and is woken.
func TestKeyOfManyProcesses(t *testing.T) {
	dir := t.TempDir()
	var servers []*process
	for range 16 {
		servers = append(servers, startRole(t, "key", dir))
	}
	for _, s := range servers {
		if l := s.line(); l != "woken 0" {
			t.Fatalf("before there is a key: %s", l)
		}
	}
	k := createKey(t, dir)
	set(t, k, false) // it appears, which only those see who are woken
	for _, s := range servers {
		if l := s.line(); l != "woken 0" {
			t.Fatalf("when the key appears: %s", l)
		}
	}
	for turn := range uint32(10) {
		want := (turn + 1) % 2
		if turn == 4 { // the manager is restarted
			k.Release()
			k = createKey(t, dir)
			wantKey(t, k, 0, "after a restart")
		}
		set(t, k, want == 1)
		for _, s := range servers {
			fmt.Fprintln(s.in, "?")
		}
		asked, woken := fmt.Sprint("asked ", want), fmt.Sprint("woken ", want)
		for i, s := range servers {
			for answered, told := false, false; !answered || !told; {
				switch l := s.line(); {
				case l == asked:
					answered = true
				case l == woken:
					told = true
				case strings.HasPrefix(l, "asked"):
					t.Fatalf("turn %d, process %d: %s", turn, i, l)
				}
			}
		}
	}
}

// TestKeyKeepsItsState: who takes the key finds it as it was in this boot, off in another.
func TestKeyKeepsItsState(t *testing.T) {
	run := t.TempDir()
	k := createKey(t, run)
	wantKey(t, k, 0, "new")
	set(t, k, true)
	server := openKey(t, run, nil)
	wantKey(t, server, 1, "a server")
	k.Release()
	wantKey(t, server, 1, "a server without a manager")
	wantKey(t, openKey(t, run, nil), 1, "a server that starts without a manager")
	if err := k.Set(false); err == nil {
		t.Error("it was turned by a manager that had released it")
	}
	wantKey(t, createKey(t, run), 1, "the next manager")

	path := filepath.Join(run, keyName)
	if err := os.WriteFile(path, keyPage(true, 7, "00000000-0000-0000-0000-000000000000"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	late := openKey(t, run, &log)
	wantKey(t, late, 0, "a key of another boot")
	if !strings.Contains(log.String(), "another boot") {
		t.Errorf("log: %s", &log)
	}
	k = createKey(t, run)
	wantKey(t, k, 0, "the next manager, after a boot")
	set(t, k, true)
	late.reload()
	wantKey(t, late, 1, "after the manager turned it")
}

// TestKeyDamaged: whatever is done to the file, who has it mapped goes on with what it said
// last, says so once, and follows again when the manager turns it.
func TestKeyDamaged(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"truncated":    func(p string) error { return os.Truncate(p, 0) },
		"cut":          func(p string) error { return os.Truncate(p, 10) },
		"its word cut": func(p string) error { return os.Truncate(p, 8) },
		"echoed into":  func(p string) error { return os.WriteFile(p, []byte("1\n"), 0o600) },
		"overwritten":  func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), keySize), 0o600) },
		"neither": func(p string) error {
			return os.WriteFile(p, append([]byte("hkey\x01\x00\x00\x00\x02"), make([]byte, keySize)...), 0o600)
		},
		"removed": os.Remove,
		"garbage in its place": func(p string) error {
			os.Remove(p)
			return os.WriteFile(p, bytes.Repeat([]byte("x"), keySize), 0o600)
		},
		"a directory in its place": func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) },
		"a FIFO in its place":      func(p string) error { os.Remove(p); return unix.Mkfifo(p, 0o600) },
		"a symlink in its place":   func(p string) error { os.Remove(p); return os.Symlink("/dev/zero", p) },
	} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			path := filepath.Join(run, keyName)
			k := createKey(t, run)
			set(t, k, true)
			var log bytes.Buffer
			server := openKey(t, run, &log)
			if err := damage(path); err != nil {
				t.Fatal(err)
			}
			wantKey(t, server, 1, "damaged")
			server.reload()
			server.reload()
			wantKey(t, server, 1, "damaged, and looked at")
			if n := strings.Count(log.String(), "on, as it was"); n != 1 {
				t.Errorf("said %d times: %s", n, &log)
			}
			wantKey(t, openKey(t, run, nil), 0, "a server that starts now")
			if k.Good() {
				t.Error("the manager takes it for good")
			}
			wantKey(t, k, 1, "the manager")

			log.Reset()
			set(t, k, false)
			server.reload()
			wantKey(t, server, 0, "turned off")
			set(t, k, true)
			wantKey(t, server, 1, "turned on")
			wantKey(t, openKey(t, run, nil), 1, "a server that starts later")
			if !k.Good() || log.Len() > 0 {
				t.Errorf("good: %v, log: %s", k.Good(), &log)
			}
		})
	}
}

// TestKeyInTheWay: the next manager clears away what is no key, unless that has content.
func TestKeyInTheWay(t *testing.T) {
	run := t.TempDir()
	path := filepath.Join(run, keyName)
	if err := os.MkdirAll(filepath.Join(path, "mine"), 0o700); err != nil {
		t.Fatal(err)
	}
	k := createKey(t, run)
	if err := k.Set(true); err == nil || !strings.Contains(err.Error(), "directory is in the way") || k.Load() != 0 {
		t.Errorf("%v, reads %d", err, k.Load())
	}
	os.Remove(filepath.Join(path, "mine"))
	set(t, k, true)
	wantKey(t, k, 1, "when nothing is in the way")
}

// TestKeyWatch: whoever watches hears of each change, also of a file that is replaced, by
// inotify or without, and no descriptor is left behind.
func TestKeyWatch(t *testing.T) {
	for name, watch := range map[string]func(k *Key, ctx context.Context, f func()){
		"inotify": func(k *Key, ctx context.Context, f func()) { k.Watch(ctx, f) },
		"polled":  func(k *Key, ctx context.Context, f func()) { k.poll(ctx, f, time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			k, server := createKey(t, run), openKey(t, run, nil)
			fds := countFds(t)
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan uint32, 1024)
			ended := make(chan struct{})
			go func() { defer close(ended); watch(server, ctx, func() { seen <- server.Load() }) }()
			until := func(want uint32) {
				for v := range seen {
					if v == want {
						return
					}
				}
			}
			until(0)
			set(t, k, true)
			until(1)
			os.Remove(filepath.Join(run, keyName))
			set(t, k, false)
			until(0)
			set(t, k, true)
			until(1)
			cancel()
			<-ended
			if n := countFds(t); n > fds+1 { // the manager's file, which was not open at first
				t.Errorf("%d descriptors, %d before", n, fds)
			}
		})
	}
}

func countFds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestKeyWithoutInotify: where the directory can't be watched, the key is polled.
func TestKeyWithoutInotify(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	var log bytes.Buffer
	server := openKey(t, run, &log)
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	server.Watch(ctx, func() { calls++; cancel() })
	if calls != 1 || !strings.Contains(log.String(), "max_user_instances") {
		t.Errorf("%d calls, log: %s", calls, &log)
	}
}

func FuzzKey(f *testing.F) {
	f.Add(keyPage(true, 3, BootID()))
	f.Add(keyPage(false, 0, "another"))
	f.Add([]byte("1\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		run := t.TempDir()
		if err := os.WriteFile(filepath.Join(run, keyName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		on := checkKey(content, BootID()) == "" && content[keyOn] == 1
		if got := openKey(t, run, nil).Load() == 1; got != on {
			t.Fatalf("reads %v, want %v", got, on)
		}
		k := createKey(t, run)
		set(t, k, true)
		wantKey(t, openKey(t, run, nil), 1, "turned on")
	})
}

func FuzzKeyEvents(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00key\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { keyEvents(b) })
}
