package state

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// keyPoll is how often the key is looked at where inotify(7) isn't to be had: a user has no
// more than fs.inotify.max_user_instances, by default 128, and root is no exception.
const keyPoll = time.Second

// Watch calls changed after each change of the key, and once at the beginning, until ctx
// ends. Changes that follow each other closely may be told as one.
func (k *Key) Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		err := k.watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		k.log.Info().Err(err).Msgf("the standby check is looked at every %v, as its changes can't be watched; more may be with fs.inotify.max_user_instances", keyPoll)
		k.poll(ctx, changed, keyPoll)
	}
}

// watch waits for changes in the directory: the file itself may be replaced.
func (k *Key) watch(ctx context.Context, changed func()) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	file := os.NewFile(uintptr(fd), "inotify") // waits without a thread
	defer file.Close()
	const events = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, k.dir, events); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	defer context.AfterFunc(ctx, func() { file.Close() })()
	k.reload()
	changed()
	buf := make([]byte, 64<<10)
	for {
		n, err := file.Read(buf)
		if err != nil {
			return err
		}
		ours, over := keyEvents(buf[:n])
		if ours {
			k.reload()
			changed()
		}
		if over {
			return errors.New("the directory is gone")
		}
	}
}

// poll looks at the key from time to time.
func (k *Key) poll(ctx context.Context, changed func(), period time.Duration) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	k.reload()
	was := k.Load()
	changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		k.reload()
		if is := k.Load(); is != was {
			was = is
			changed()
		}
	}
}

// keyEvents looks through what inotify says for what may be about the key. over: there will
// be no more.
func keyEvents(b []byte) (ours, over bool) {
	for len(b) >= unix.SizeofInotifyEvent {
		mask := nativeU32(b[4:])
		end := unix.SizeofInotifyEvent + int(nativeU32(b[12:]))
		if end > len(b) {
			return true, over
		}
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		ours = ours || name == keyName || mask&unix.IN_Q_OVERFLOW != 0
		over = over || mask&unix.IN_IGNORED != 0
		b = b[end:]
	}
	return ours, over
}
