package standby

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDefaultTriggers holds how lost storage looks, and passes what is a request's own fault,
// waits for space, or is damage.
func TestDefaultTriggers(t *testing.T) {
	seen := map[unix.Errno]bool{}
	for _, e := range DefaultTriggers {
		if seen[e] {
			t.Errorf("%v is in the set twice", e)
		}
		seen[e] = true
	}
	for _, e := range []unix.Errno{
		unix.EBUSY, unix.ENOTCONN, unix.EIO, unix.ECONNABORTED, unix.EBADFD, // as ever
		unix.EROFS, unix.ESHUTDOWN, unix.EHOSTDOWN, unix.ETIMEDOUT, unix.ESTALE, unix.ENODEV, unix.ENOLINK, unix.EBADE, unix.EACCES,
	} {
		f := newFixture()
		f.k.Enable("t")
		if err := f.d.Attach("x"); err != nil {
			t.Fatal(err)
		}
		if v := f.d.Fault(e, "a read", Place{}, false); v != Hold {
			t.Errorf("%v: %v", e, v)
		}
	}
	for _, e := range []unix.Errno{unix.EINVAL, unix.EFBIG, unix.EOPNOTSUPP, unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.ENODATA, unix.EILSEQ, unix.EBADMSG, unix.EUCLEAN, unix.EINTR} {
		if slices.Contains(DefaultTriggers, e) {
			t.Errorf("%v is in the set", e)
		}
	}
}
