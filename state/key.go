package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// The key's file is one page in the byte order of the machine:
//
//	0  u32  magic
//	4  u32  version
//	8  u32  on: 0 or 1
//	12 u32  changes: counts writes
//	16 36 bytes  the boot that it belongs to
//	4092 u32  magic again: a file that was cut off ends in zeros
//
// It is written by write(2) and read through a mapping: a reader sees a change at once, and
// inotify(7) tells of it.
const (
	keyName    = "key"
	keySize    = 4096
	keyMagic   = 0x79656b68 // "hkey"
	keyVersion = 1
	keyOn      = 8
	keyChanges = 12
	keyBoot    = 16
	keyEnd     = keySize - 4
	bootLen    = 36
)

// Key is the file RUN/key, which says whether the standby check is on: of all processes at
// the same instant, whether or not anybody lives who could answer.
//
// A file that isn't there, or is not of this boot, says off. One that was good and is damaged
// or removed then says nothing: what it said last stays, as to believe it would fail every held
// request of the host. Who has the key writes it anew.
type Key struct {
	dir, path string
	boot      string
	log       zerolog.Logger
	page      unsafe.Pointer // of the file, or empty memory; its address never changes
	last      atomic.Uint32  // what a good file said

	mu     sync.Mutex
	mapped fileIdentity // the file that is mapped
	said   string       // what was last found wrong, and logged

	ours    bool     // and may be written
	file    *os.File // nil: there is none yet
	changes uint32
}

type fileIdentity struct{ dev, ino uint64 }

// OpenKey is a server's view of the key. Load follows the file by itself, but for one that
// appears or is replaced later: Watch sees to that.
func OpenKey(runDir string, log zerolog.Logger) (*Key, error) {
	page, err := unix.MmapPtr(-1, 0, nil, keySize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for the standby check: %w", err)
	}
	k := &Key{dir: runDir, path: Run(runDir).Key(), boot: BootID(), log: log, page: page}
	k.reload()
	return k, nil
}

// CreateKey is OpenKey with Take.
func CreateKey(runDir string, log zerolog.Logger) (*Key, error) {
	k, err := OpenKey(runDir, zerolog.Nop()) // there may be none yet
	if err != nil {
		return nil, err
	}
	k.log = log
	k.Take()
	return k, nil
}

// Take takes the key for the one process that turns it, which has the run directory's lock.
// What it says stays if it is of this boot; Set makes the file if there is none.
func (k *Key) Take() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ours = true
	if k.file != nil {
		return
	}
	file, err := os.OpenFile(k.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return // absent, or something else that Set deals with
	}
	if fi, err := file.Stat(); err != nil || !fi.Mode().IsRegular() {
		file.Close()
		return
	}
	k.file = file
	if page, err := readKey(file); err == nil && checkKey(page, k.boot) == "" {
		k.changes = nativeU32(page[keyChanges:])
	}
}

// Release leaves the key to the next who takes it. Load goes on.
func (k *Key) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ours = false
	if k.file != nil {
		k.file.Close()
		k.file = nil
	}
}

// Load is 1 while the standby check is on, and 0 while it is off.
func (k *Key) Load() uint32 {
	v, ok := k.read()
	if !ok {
		return k.last.Load()
	}
	if k.last.Load() != v {
		k.last.Store(v)
	}
	return v
}

// read reads the mapping. The page is gone (SIGBUS) while the file is shorter than it was.
func (k *Key) read() (v uint32, ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			v, ok = 0, false
		}
	}()
	word := func(at uintptr) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Add(k.page, at))) }
	v = word(keyOn)
	return v, word(0) == keyMagic && word(keyEnd) == keyMagic && word(4) == keyVersion && v <= 1
}

// Set turns the check on or off, and wakes those who watch. It writes the whole file, and so
// mends it.
func (k *Key) Set(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ours {
		return errors.New("turn the standby check: another process has it")
	}
	k.changes++
	page := keyPage(on, k.changes, k.boot)
	if k.file != nil {
		// Before all others, those who have mapped this one: it may not be in its place any more.
		if _, err := k.file.WriteAt(page, 0); err != nil {
			return fmt.Errorf("turn the standby check: %w", err)
		}
		if stillAt(k.file, k.path) {
			k.see()
			return nil
		}
		k.file.Close()
		k.file = nil
	}
	if fi, err := os.Lstat(k.path); err == nil && fi.IsDir() {
		if err := os.Remove(k.path); err != nil {
			return fmt.Errorf("turn the standby check: a directory is in the way, remove it: %w", err)
		}
	}
	err := renameio.WriteFile(k.path, page, 0o600, renameio.WithTempDir(k.dir))
	if err == nil {
		k.file, err = os.OpenFile(k.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return fmt.Errorf("turn the standby check: %w", err)
	}
	k.see()
	return nil
}

// Good says that the file is there and says what Load says.
func (k *Key) Good() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.see() == "" && k.file != nil && stillAt(k.file, k.path)
}

func keyPage(on bool, changes uint32, boot string) []byte {
	page := make([]byte, keySize)
	binary.NativeEndian.PutUint32(page, keyMagic)
	binary.NativeEndian.PutUint32(page[4:], keyVersion)
	if on {
		binary.NativeEndian.PutUint32(page[keyOn:], 1)
	}
	binary.NativeEndian.PutUint32(page[keyChanges:], changes)
	binary.NativeEndian.PutUint32(page[keyEnd:], keyMagic)
	copy(page[keyBoot:keyBoot+bootLen], boot)
	return page
}

// checkKey says what is wrong with a page, "": nothing.
func checkKey(page []byte, boot string) string {
	if len(page) < keySize {
		return fmt.Sprintf("it has %d bytes of %d", len(page), keySize)
	}
	u32 := func(at int) uint32 { return nativeU32(page[at:]) }
	switch {
	case u32(0) != keyMagic || u32(keyEnd) != keyMagic:
		return "it is not a key"
	case u32(4) != keyVersion:
		return fmt.Sprintf("it has version %d, and this program knows %d", u32(4), keyVersion)
	case u32(keyOn) > 1:
		return fmt.Sprintf("it says %d, which is neither on nor off", u32(keyOn))
	case strings.TrimRight(string(page[keyBoot:keyBoot+bootLen]), "\x00") != boot:
		return "it is of another boot"
	}
	return ""
}

func nativeU32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

func readKey(file *os.File) ([]byte, error) {
	page := make([]byte, keySize)
	n, err := file.ReadAt(page, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return page[:n], err
}

// reload follows the path to the file, and logs what is wrong with it, once.
func (k *Key) reload() {
	k.mu.Lock()
	defer k.mu.Unlock()
	wrong := k.see()
	if wrong != "" && wrong != k.said {
		is := "off"
		if k.Load() == 1 {
			is = "on, as it was"
		}
		k.log.Warn().Str("file", k.path).Msgf("the standby check is taken to be %s: %s", is, wrong)
	}
	k.said = wrong
}

// see maps the file at the path if it is a good one and not mapped yet, and says what is
// wrong with it. mu is held.
func (k *Key) see() string {
	file, err := os.OpenFile(k.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	var st unix.Stat_t
	if err := onFd(file, func(fd uintptr) error { return unix.Fstat(int(fd), &st) }); err != nil {
		return err.Error()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "it is not a regular file"
	}
	page, err := readKey(file)
	if err != nil {
		return err.Error()
	}
	if wrong := checkKey(page, k.boot); wrong != "" {
		return wrong
	}
	if id := (fileIdentity{st.Dev, st.Ino}); id != k.mapped {
		err := onFd(file, func(fd uintptr) error {
			// In the place of what was there: who reads it meanwhile reads either.
			_, err := unix.MmapPtr(int(fd), 0, k.page, keySize, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED)
			return err
		})
		if err != nil {
			return fmt.Sprintf("map: %v", err)
		}
		k.mapped = id
	}
	k.Load()
	return ""
}
