package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/state"
)

// The bounds of a journal.
const (
	journalEvents = 512       // are kept in memory
	journalFile   = 64 << 10  // bytes of a file before it is put aside as the older one
	journalText   = 2 << 10   // bytes of an event's message; the rest is cut off
	journalRead   = 256 << 10 // bytes of a file that are read; a longer one isn't ours
	journalMaxSeq = 1 << 62   // a higher number isn't ours either
	journalRetry  = 16        // events after which a file that failed is tried again
)

// Journal is a device's last events, numbered from 1 on. It is kept in a file as well, so that
// the next server, after this one's death too, goes on with the next number. Of what the file
// can't take nothing is lost but that.
//
// A journal has an instance, a random text: as long as that is the same a number means the
// same event. It is another one when numbers that were given out may be unknown to the file.
type Journal struct {
	path string
	boot string
	log  zerolog.Logger

	mu       sync.Mutex
	instance string
	was      string // the instance before the file failed: its numbers up to wasLast count yet
	wasLast  uint64
	ring     []api.Event // consecutive, the last one has the number last
	last     uint64
	more     chan struct{} // closed by the next event; nil: nobody waits
	file     *os.File      // nil: it failed, or is closed
	size     int64
	failing  bool // the file doesn't have this instance
	closed   bool
}

// header is the first line of a journal's files.
type header struct {
	Journal string `json:"journal"` // the instance
	Boot    string `json:"boot"`
}

// OpenJournal goes on with the journal in the files events and events.old of a directory of
// this boot's, or begins one.
func OpenJournal(dir string, log zerolog.Logger) *Journal {
	j := &Journal{path: filepath.Join(dir, "events"), boot: state.BootID(), log: log}
	end, err := j.load()
	if err == nil {
		err = j.goOn(end)
	}
	if err != nil {
		j.instance = rand.Text()
		err = j.rewrite()
	}
	if err != nil {
		j.failed(err)
	}
	return j
}

// Add numbers an event and keeps it. It waits for no reader.
func (j *Journal) Add(e api.Event) api.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Message, e.Kind, e.Device = clip(e.Message), clip(e.Kind), clip(e.Device)
	e.Seq = j.last + 1
	// In the file first: a number that a reader has seen is known to the next server.
	if !j.closed {
		if err := j.spill(e); err != nil {
			j.failed(err)
		}
	}
	j.keep(e)
	if j.more != nil {
		close(j.more)
		j.more = nil
	}
	return e
}

func clip(s string) string {
	if len(s) <= journalText {
		return s
	}
	return strings.ToValidUTF8(s[:journalText], "") + "…"
}

// keep adds to the ring what comes next.
func (j *Journal) keep(e api.Event) {
	if len(j.ring) == journalEvents {
		j.ring = j.ring[1:]
	}
	j.ring, j.last = append(j.ring, e), e.Seq
}

// Instance is the journal's instance, and Last the number of its last event, 0: there is none.
func (j *Journal) Instance() (instance string, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.instance, j.last
}

// Since gives the events after the one that a reader had last, and how many more there were.
// instance is the reader's, "" for one that has none: seq counts in any case then. To a reader
// of another instance everything is new.
func (j *Journal) Since(instance string, seq uint64) (events []api.Event, missed uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	seq = j.position(instance, seq)
	first := j.last + 1 - uint64(len(j.ring))
	if seq+1 < first {
		missed = first - seq - 1
		seq = first - 1
	}
	return append([]api.Event{}, j.ring[seq+1-first:]...), missed
}

// position is what a reader's number means in this instance, 0: nothing.
func (j *Journal) position(instance string, seq uint64) uint64 {
	switch {
	case seq > j.last:
	case instance == "" || instance == j.instance:
		return seq
	case instance == j.was && seq <= j.wasLast:
		return seq
	}
	return 0
}

// Wait waits until Since has something to give.
func (j *Journal) Wait(ctx context.Context, instance string, seq uint64) error {
	for {
		j.mu.Lock()
		if j.last > j.position(instance, seq) {
			j.mu.Unlock()
			return nil
		}
		if j.more == nil {
			j.more = make(chan struct{})
		}
		more := j.more
		j.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close leaves the files to the next server. What is added later is kept in memory only.
func (j *Journal) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}

// failed goes on without the file. From here on numbers are given out that it doesn't have,
// so the next server must not be taken for a continuation of this instance.
func (j *Journal) failed(err error) {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	if !j.failing {
		j.failing = true
		_ = os.Rename(j.path, j.path+".old") // see load
		j.was, j.wasLast = j.instance, j.last
		j.instance = rand.Text()
		j.log.Warn().Err(err).Msg("events are kept in memory only, and end with this process")
	}
}

// spill writes an event to the file, one line with one write.
func (j *Journal) spill(e api.Event) error {
	if j.failing && e.Seq%journalRetry != 0 {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	switch {
	case j.failing:
		err = j.rewrite()
	case j.size+int64(len(line)) > journalFile:
		err = j.rotate()
	}
	if err != nil {
		return err
	}
	n, err := j.file.Write(line)
	j.size += int64(n)
	return err
}

// rotate makes the file the older one, and begins another. At any time there is a file with
// the last event, as without one the numbers would be taken for lost.
func (j *Journal) rotate() error {
	if err := os.Remove(j.path + ".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Link(j.path, j.path+".old"); err != nil {
		return err
	}
	return j.begin(nil)
}

// goOn appends to the file that is there, of which what comes after end is no line.
func (j *Journal) goOn(end int64) error {
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := f.Truncate(end); err != nil {
		f.Close()
		return err
	}
	j.file, j.size = f, end
	return nil
}

// rewrite puts what is in memory into a new file, as much as may be in one.
func (j *Journal) rewrite() error {
	var lines [][]byte
	size := 0
	for i := len(j.ring) - 1; i >= 0; i-- {
		line, err := json.Marshal(j.ring[i])
		if err != nil {
			return err
		}
		if size += len(line) + 1; size > journalFile {
			break
		}
		lines = append(lines, line)
	}
	var b bytes.Buffer
	for i := len(lines) - 1; i >= 0; i-- {
		b.Write(lines[i])
		b.WriteByte('\n')
	}
	if err := os.Remove(j.path + ".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return j.begin(b.Bytes())
}

// begin puts a new file in the place of the current one.
func (j *Journal) begin(lines []byte) (err error) {
	head, err := json.Marshal(header{j.instance, j.boot})
	if err != nil {
		return err
	}
	lines = append(append(head, '\n'), lines...)
	temp := j.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(lines); err == nil {
		err = os.Rename(temp, j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(temp)
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.failing = f, int64(len(lines)), false
	return nil
}

// load reads the files, and says where their lines end. After an error their instance doesn't
// go on, though what could be read is kept. So it is where there is an older file only.
func (j *Journal) load() (end int64, err error) {
	data, err := readJournal(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		data, _ = readJournal(j.path + ".old")
	} else if err != nil {
		return 0, err
	}
	missing := err
	head, events, err := parseJournal(data)
	if head.Boot != j.boot || head.Journal == "" {
		return 0, errors.New("it is of another boot, or of nobody")
	}
	if older, err := readJournal(j.path + ".old"); err == nil {
		if oldHead, olderEvents, _ := parseJournal(older); oldHead == head {
			events = append(olderEvents, events...)
		}
	}
	for _, e := range events {
		if e.Seq > j.last+1 {
			j.ring = j.ring[:0] // some are missing in between
		}
		if e.Seq > j.last {
			j.keep(e)
		}
	}
	j.instance = head.Journal
	return int64(bytes.LastIndexByte(data, '\n') + 1), errors.Join(missing, err)
}

func readJournal(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() || fi.Size() > journalRead {
		return nil, fmt.Errorf("%q is no journal", path)
	}
	return io.ReadAll(io.LimitReader(f, journalRead))
}

// parseJournal takes the lines of a file apart. Those that are no events are left out. A last
// line without an end was cut off by the end of its writer, and nobody was told of it. Any
// other line that is no event is an error: it may have been one that somebody knows.
func parseJournal(data []byte) (head header, events []api.Event, err error) {
	line, data, whole := bytes.Cut(data, []byte{'\n'})
	if !whole || json.Unmarshal(line, &head) != nil {
		return header{}, nil, errors.New("it has no header")
	}
	for n := 2; ; n++ {
		line, data, whole = bytes.Cut(data, []byte{'\n'})
		if !whole {
			return head, events, err
		}
		var e api.Event
		if json.Unmarshal(line, &e) != nil || e.Seq == 0 || e.Seq > journalMaxSeq {
			err = fmt.Errorf("line %d is no event", n)
			continue
		}
		e.Message, e.Kind, e.Device = clip(e.Message), clip(e.Kind), clip(e.Device)
		events = append(events, e)
	}
}
