package spawner

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"holdfast/hack/faultfs"
)

// What hung is to open, and whether to do without a spawner.
const (
	fileEnv   = "HOLDFAST_TEST_FILE"
	directEnv = "HOLDFAST_TEST_DIRECT"
)

// hung is a process that has a file open on storage that hangs, and has a program run.
func hung() {
	var s *Spawner
	var err error
	if os.Getenv(directEnv) == "" {
		if s, err = Start(func(error) {}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	f, err := os.Open(os.Getenv(fileEnv))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() {
		p, err := s.Start(Command{Path: "/bin/true"})
		if err == nil {
			err = p.Wait()
		}
		fmt.Println("ended:", err)
	}()
	for {
		time.Sleep(100 * time.Millisecond)
		runtime.GC()
		fmt.Println("lives")
		runtime.KeepAlive(f) // or else it would be closed
	}
}

// TestStorageHangs has a program started by a process whose storage hangs. Without a
// spawner it begins when the storage is back.
func TestStorageHangs(t *testing.T) {
	vm := os.Getenv("HOLDFAST_VM") != ""
	if vm {
		exec.Command("modprobe", "fuse").Run()
	}
	storage, err := faultfs.Mount(t.TempDir(), t.TempDir(), faultfs.Options{})
	if err != nil {
		if vm {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err := os.WriteFile(storage.Backing+"/image", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	flush := storage.Add(faultfs.Rule{Op: faultfs.Flush, Hang: true})
	begin := func(direct string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stdout = append(os.Environ(), roleEnv+"=hung", fileEnv+"="+storage.Dir+"/image", directEnv+"="+direct), w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		t.Cleanup(func() {
			cmd.Process.Kill()
			storage.Close() // its end, too, waits for its file
			cmd.Wait()
			r.Close()
		})
		return r
	}
	// says waits until it says a word.
	says := func(r *os.File, word string, limit time.Duration) (string, bool) {
		r.SetReadDeadline(time.Now().Add(limit))
		var said []byte
		for buf := make([]byte, 100); ; {
			n, err := r.Read(buf)
			said = append(said, buf[:n]...)
			if bytes.Contains(said, []byte(word)) {
				return string(said), true
			}
			if err != nil {
				return string(said), false
			}
		}
	}
	with := begin("")
	if said, ok := says(with, "ended: <nil>\nlives", time.Minute); !ok {
		t.Errorf("with a spawner it says %q", said)
	}
	if n := storage.Rule(flush).Hanging; n != 0 {
		t.Errorf("with a spawner %d closes hang", n)
	}
	without := begin("yes")
	for begin := time.Now(); storage.Rule(flush).Hanging != 1; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("without a spawner no close hangs, and this test shows nothing")
		}
	}
	said, ok := says(without, "ended", 3*time.Second)
	if ok {
		t.Errorf("without a spawner the program has begun, and this test shows nothing: %q", said)
	}
	t.Logf("without a spawner it says %q and so on meanwhile", said[:min(len(said), 12)])
	storage.Clear()
	if said, ok := says(without, "ended: <nil>", time.Minute); !ok {
		t.Errorf("it does not go on when the storage is back: %q", said)
	}
}
