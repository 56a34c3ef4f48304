package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"holdfast/api"
	"holdfast/state"
)

// tempDir is in memory, as the run directory is.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(dir string) *Journal { return OpenJournal(dir, zerolog.Nop()) }

func add(j *Journal, n int) {
	for i := range n {
		j.Add(api.Event{Device: "v", Kind: "k", Message: fmt.Sprint("event ", i)})
	}
}

// TestJournalGoesOn: the next server has the events, and goes on with their numbers.
func TestJournalGoesOn(t *testing.T) {
	dir := tempDir(t)
	a := open(dir)
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	first := a.Add(api.Event{Time: when, Device: "v", Kind: "created", Message: "of \"x\"\n\xff"})
	add(a, 3)
	instance, last := a.Instance()
	if first.Seq != 1 || last != 4 {
		t.Fatalf("numbers %d to %d", first.Seq, last)
	}
	// It dies, and the last line was cut off.
	f, err := os.OpenFile(filepath.Join(dir, "events"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"time":"2026-`)
	f.Close()
	for life := range 3 {
		b := open(dir)
		if i, l := b.Instance(); i != instance || l != uint64(4+life) {
			t.Fatalf("the next server: instance %q, %q before; last %d", i, instance, l)
		}
		events, missed := b.Since(instance, 0)
		if missed != 0 || len(events) != 4+life || !events[0].Time.Equal(when) || events[0].Kind != "created" || !strings.Contains(events[0].Message, `"x"`) {
			t.Fatalf("missed %d, events %+v", missed, events)
		}
		if events, missed := b.Since(instance, uint64(4+life)); len(events)+int(missed) != 0 {
			t.Errorf("nothing is new: %d, %v", missed, events)
		}
		if e := b.Add(api.Event{Kind: "served"}); e.Seq != uint64(5+life) {
			t.Errorf("number %d", e.Seq)
		}
	}
}

// TestJournalIsBounded: in memory, in the files, and an event by itself. What is no longer
// there is counted.
func TestJournalIsBounded(t *testing.T) {
	dir := tempDir(t)
	j := open(dir)
	long := strings.Repeat("ü\x00", 1<<20)
	for range 3000 {
		if e := j.Add(api.Event{Message: long, Kind: long, Device: long}); len(e.Message) > journalText+3 {
			t.Fatalf("a message of %d bytes", len(e.Message))
		}
		for _, name := range []string{"events", "events.old"} {
			if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Size() > journalFile {
				t.Fatalf("%s has %d bytes", name, fi.Size())
			}
		}
	}
	instance, _ := j.Instance()
	events, missed := j.Since(instance, 10)
	if len(events) != journalEvents || missed != 3000-10-journalEvents || events[0].Seq != 3000-journalEvents+1 {
		t.Errorf("%d events, %d missed", len(events), missed)
	}
	next := open(dir)
	if i, last := next.Instance(); i != instance || last != 3000 {
		t.Errorf("after it: instance %q, %q before; last %d", i, instance, last)
	}
	events, missed = next.Since(instance, 2990)
	if len(events)+int(missed) != 10 {
		t.Errorf("after it: %d events, %d missed", len(events), missed)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("files: %v", entries)
	}
}

// TestJournalRotates: the next server has the events of both files.
func TestJournalRotates(t *testing.T) {
	dir := tempDir(t)
	j := open(dir)
	for size := int64(0); ; {
		add(j, 1)
		fi, err := os.Stat(filepath.Join(dir, "events"))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() < size {
			break
		}
		size = fi.Size()
	}
	instance, last := j.Instance()
	if events, missed := open(dir).Since(instance, last-100); missed != 0 || len(events) != 100 {
		t.Errorf("%d events, %d missed", len(events), missed)
	}
}

// TestJournalInstance: numbers that the files may not know are those of another instance.
func TestJournalInstance(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"removed":   os.Remove,
		"emptied":   func(p string) error { return os.Truncate(p, 0) },
		"garbage":   func(p string) error { return os.WriteFile(p, []byte("x\ny\n"), 0o600) },
		"huge":      func(p string) error { return os.Truncate(p, 1<<40) },
		"directory": func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) },
		"line": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, append(b[:len(b)-10], '\n'), 0o600)
		},
		"reboot": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, bytes.Replace(b, []byte(state.BootID()), []byte("another"), 1), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			a := open(dir)
			add(a, 5)
			instance, _ := a.Instance()
			if err := damage(filepath.Join(dir, "events")); err != nil {
				t.Fatal(err)
			}
			b := open(dir)
			e := b.Add(api.Event{Kind: "served"})
			if i, _ := b.Instance(); i == instance {
				t.Fatal("it goes on as if nothing had been lost")
			}
			events, _ := b.Since(instance, 5)
			if len(events) == 0 || events[len(events)-1].Seq != e.Seq {
				t.Errorf("a reader of the old instance gets %v", events)
			}
		})
	}
}

// TestJournalWithoutFile: where the file can't be written the journal goes on in memory, says
// so once, and is in the file when that works again.
func TestJournalWithoutFile(t *testing.T) {
	dir := filepath.Join(tempDir(t), "v")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	j := OpenJournal(dir, zerolog.New(&log))
	add(j, 3)
	before, _ := j.Instance()
	// As after a write that failed, into a directory that takes no file.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	j.file.Close()
	add(j, 30)
	during, _ := j.Instance()
	if during == before {
		t.Error("numbers that the file doesn't have are of its instance")
	}
	if events, missed := j.Since(before, 2); len(events) != 31 || missed != 0 {
		t.Errorf("a reader of before gets %d, missed %d, though its place is known", len(events), missed)
	}
	if events, _ := j.Since(before, 4); len(events) != 33 {
		t.Errorf("a number that the instance never had: %d events", len(events))
	}
	if n := strings.Count(log.String(), "memory only"); n != 1 {
		t.Errorf("said %d times", n)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	add(j, journalRetry)
	next := open(dir)
	if i, last := next.Instance(); i != during || last != 33+journalRetry {
		t.Errorf("the next server: %q, want %q; last %d", i, during, last)
	}
	if events, missed := next.Since(during, 1); len(events) != 32+journalRetry || missed != 0 {
		t.Errorf("the next server has %d events", len(events))
	}
}

// TestJournalWait: who waits is woken by the next event, and leaves no goroutine behind.
func TestJournalWait(t *testing.T) {
	j := open(tempDir(t))
	instance, _ := j.Instance()
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	const waiters = 20
	ended := make(chan error, 2*waiters)
	for range waiters {
		go func() { ended <- j.Wait(t.Context(), instance, 0) }()
		go func() { ended <- j.Wait(ctx, instance, 1) }()
	}
	add(j, 1)
	for range waiters {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for range waiters {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i > 1000 {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(time.Millisecond)
	}
	if err := j.Wait(t.Context(), "another", 1); err != nil {
		t.Error(err) // all is new to it
	}
}

// TestAnyJournal: readers that come and go over deaths and damages get every event, or are
// told how many they missed, or that the journal is another one.
func TestAnyJournal(t *testing.T) {
	dirs := tempDir(t)
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(dirs, "")
		if err != nil {
			t.Fatal(err)
		}
		j := open(dir)
		total := 0 // events that there were, which have their number in the message
		meant := map[string]string{}
		type reader struct {
			instance string
			seq      uint64
			total    int // at its last look
		}
		readers := make([]reader, 3)
		pull := func(t *rapid.T, r *reader) {
			events, missed := j.Since(r.instance, r.seq)
			instance, last := j.Instance()
			if instance == r.instance && len(events)+int(missed) != total-r.total {
				t.Fatalf("%d events and %d missed, there were %d", len(events), missed, total-r.total)
			}
			for i, e := range events {
				if e.Seq != last-uint64(len(events)-1-i) {
					t.Fatalf("number %d in the place %d of %d, last %d", e.Seq, i, len(events), last)
				}
				id := fmt.Sprint(instance, e.Seq)
				if was, ok := meant[id]; ok && was != e.Message {
					t.Fatalf("number %d is event %s, and was event %s", e.Seq, e.Message, was)
				}
				meant[id] = e.Message
			}
			*r = reader{instance, last, total}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				// Long ones fill a file soon; those that fill the ring take their time, and are
				// seldom.
				long := strings.Repeat("x", rapid.SampledFrom([]int{0, 0, 2000}).Draw(t, "more"))
				n := rapid.SampledFrom([]int{1, 1, 2, 2, 3, 5, 10, 40}).Draw(t, "events")
				if rapid.IntRange(0, 30).Draw(t, "many") == 30 {
					n = journalEvents + 88
				}
				for range n {
					j.Add(api.Event{Message: fmt.Sprint(total), Kind: long})
					total++
				}
			},
			"pull": func(t *rapid.T) { pull(t, &readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")]) },
			"die":  func(t *rapid.T) { j = open(dir) },
			"die while writing": func(t *rapid.T) {
				f, err := os.OpenFile(filepath.Join(dir, "events"), os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					f.WriteString(`{"seq":`)
					f.Close()
				}
				j = open(dir)
			},
			"fail to write": func(t *rapid.T) {
				if j.file != nil {
					j.file.Close()
				}
			},
			"lose a file": func(t *rapid.T) {
				os.Remove(filepath.Join(dir, rapid.SampledFrom([]string{"events", "events.old"}).Draw(t, "file")))
			},
		})
		for i := range readers {
			pull(t, &readers[i])
		}
	})
}

func FuzzJournal(f *testing.F) {
	head, _ := json.Marshal(header{"I", state.BootID()})
	line, _ := json.Marshal(api.Event{Seq: 3, Message: "m"})
	next, _ := json.Marshal(api.Event{Seq: 4, Message: "m"})
	whole := append(append(append([]byte{}, head...), '\n'), append(line, '\n')...)
	f.Add(whole, append(append(append([]byte{}, head...), '\n'), append(next, '\n')...))
	f.Add([]byte("x"), whole)
	f.Add([]byte{}, append(whole, `{"seq":`...))
	f.Fuzz(func(t *testing.T, old, events []byte) {
		dir := tempDir(t)
		os.WriteFile(filepath.Join(dir, "events.old"), old, 0o600)
		os.WriteFile(filepath.Join(dir, "events"), events, 0o600)
		j := open(dir)
		instance, last := j.Instance()
		kept, missed := j.Since("", 0)
		if uint64(len(kept))+missed != last || len(kept) > journalEvents {
			t.Fatalf("%d kept, %d missed, last %d", len(kept), missed, last)
		}
		for i, e := range kept {
			if e.Seq != missed+uint64(i)+1 {
				t.Fatalf("event %d has number %d", i, e.Seq)
			}
		}
		j.Add(api.Event{Kind: "k"})
		next := open(dir)
		if i, l := next.Instance(); i != instance || l != last+1 {
			t.Fatalf("after it: %q, %q before; last %d, %d before", i, instance, l, last)
		}
	})
}
