package state

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/api"
)

const otherBoot = "00000000-1111-2222-3333-444444444444"

// TestRunDirOfAnotherBoot: what is in a run directory is of this boot, but for files that
// aren't ours; one of an earlier version is left alone.
func TestRunDirOfAnotherBoot(t *testing.T) {
	for _, c := range []struct {
		name, boot string // in the file; "": there is none
		cleared    bool
	}{
		{"this boot", BootID() + "\n", false},
		{"another", otherBoot + "\n", true},
		{"earlier version", "", false},
		{"nonsense", "yesterday", false},
		{"empty", "\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Run(filepath.Join(t.TempDir(), "run"))
			if err := r.create(otherBoot); err != nil {
				t.Fatal(err)
			}
			ours := []string{r.Key(), r.KeyHolders(), filepath.Join(r.Claims(), "8:1:5"), r.Device("v").Record(), r.Device("v").Events(), r.Device("v").Lock()}
			theirs := filepath.Join(string(r), "mine")
			if err := os.Mkdir(string(r.Device("v")), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, f := range append(ours, theirs) {
				if err := os.WriteFile(f, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.boot == "" {
				os.Remove(r.boot())
			} else if err := os.WriteFile(r.boot(), []byte(c.boot), 0o600); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range 4 { // all at once
				wg.Go(func() {
					if err := r.Create(); err != nil {
						t.Error(err)
					}
					if b, err := os.ReadFile(r.boot()); err != nil || string(b) != BootID()+"\n" {
						t.Errorf("it says %q, %v", b, err)
					}
				})
			}
			wg.Wait()
			for _, f := range ours {
				if _, err := os.Stat(f); os.IsNotExist(err) != c.cleared {
					t.Errorf("%s: %v", f, err)
				}
			}
			if _, err := os.Stat(theirs); err != nil {
				t.Error(err)
			}
			for dir, mode := range map[string]os.FileMode{string(r): 0o755, r.Claims(): 0o700, r.Devices(): 0o700} {
				if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != mode {
					t.Errorf("%s: %v, %v", dir, fi.Mode(), err)
				}
			}
		})
	}
}

// TestDeviceSocket: a server can be reached, however long the path; a socket that an earlier
// one left is replaced, and what isn't one is not.
func TestDeviceSocket(t *testing.T) {
	for name, deep := range map[string]int{"short": 0, "long": 120} {
		t.Run(name, func(t *testing.T) {
			base, err := os.MkdirTemp("", "hf")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(base)
			r := Run(filepath.Join(base, strings.Repeat("r", deep)))
			if err := r.Create(); err != nil {
				t.Fatal(err)
			}
			lock, err := LockDevice(t.Context(), string(r), "v", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Release()
			dir := r.Device("v")
			fds := countFds(t)
			for range 2 {
				l, err := dir.Listen()
				if err != nil {
					t.Fatal(err)
				}
				if fi, err := os.Stat(dir.Socket()); err != nil || fi.Mode().Perm() != 0o600 {
					t.Fatalf("%v, %v", fi, err)
				}
				s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"devices":[]}`)) })}
				go s.Serve(l)
				// The client's way to any socket, by the name that the manager's has.
				if err := os.Symlink(dir.Socket(), r.Socket()); err != nil && !os.IsExist(err) {
					t.Fatal(err)
				}
				if _, err := api.NewClient(string(r)).Snapshot(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
			if n := countFds(t); n > fds+1 { // epoll's
				t.Errorf("%d descriptors, %d before", n, fds)
			}
			os.Remove(dir.Socket())
			if err := os.WriteFile(dir.Socket(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := dir.Listen(); err == nil || !strings.Contains(err.Error(), "not a socket") {
				t.Errorf("over a file: %v", err)
			}
		})
	}
}
