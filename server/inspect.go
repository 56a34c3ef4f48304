package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/internal/cond"
	"holdfast/ploop"
)

// mostInspections is how many inspections of a server may be under way. Each hangs, with a thread,
// as long as the storage of its files does: one of the device's files, and others of files that
// were to replace them.
const mostInspections = 4

// inspections do what may hang with the storage of images. There is one at a time of the same
// files: some of them write.
type inspections struct {
	mu    sync.Mutex
	ended cond.Cond
	began map[string]time.Time // of those under way, by their files
}

// begin waits until an inspection of the files may begin, which is then under way until end is
// called.
func (in *inspections) begin(ctx context.Context, files string) (end func(), err error) {
	for {
		ended := in.ended.Next()
		if in.tryBegin(files) {
			return func() { in.end(files) }, nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, in.gaveUp(ctx, files, time.Time{})
		}
	}
}

func (in *inspections) tryBegin(files string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.began[files].IsZero() || len(in.began) == mostInspections {
		return false
	}
	if in.began == nil {
		in.began = map[string]time.Time{}
	}
	in.began[files] = time.Now()
	return true
}

func (in *inspections) end(files string) {
	in.mu.Lock()
	delete(in.began, files)
	in.mu.Unlock()
	in.ended.Broadcast()
}

// unanswered is the error that says since when an inspection of the files has been under way; nil:
// none is.
func (in *inspections) unanswered(files string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if began := in.began[files]; !began.IsZero() {
		return notAnswered(began)
	}
	return nil
}

// gaveUp is why somebody has waited long enough: since began, or for inspections before his own.
func (in *inspections) gaveUp(ctx context.Context, files string, began time.Time) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return api.Errorf(api.CodeInternal, "the storage of its images was not waited for any longer: %w", ctx.Err())
	}
	if !began.IsZero() {
		return notAnswered(began)
	}
	if err := in.unanswered(files); err != nil {
		return err
	}
	return api.Errorf(api.CodeImage, "%d inspections of other files have not ended yet, whose storage may hang: abort their mounts (umount -f), or try again", mostInspections)
}

// notAnswered says no more than is known: on a machine that is busy enough any storage takes its
// time. It is the same sentence however often that is asked.
func notAnswered(began time.Time) error {
	return api.Errorf(api.CodeImage, "the storage of its images has not answered since %s, and may hang", api.Clock(began))
}

// inspect does what may hang with the storage of images, and waits for it until ctx ends: the turn
// is held, and others wait for that. What is under way then goes on, and the next inspection of the
// same files waits for its end.
func (in *inspections) inspect(ctx context.Context, images []ploop.ImageRef, do func() error) error {
	files := refs(images)
	end, err := in.begin(ctx, files)
	if err != nil {
		return err
	}
	began, came := time.Now(), make(chan error, 1)
	go func() {
		err := do()
		end()
		came <- err
	}()
	select {
	case err := <-came:
		return err
	case <-ctx.Done():
		return in.gaveUp(ctx, files, began)
	}
}
