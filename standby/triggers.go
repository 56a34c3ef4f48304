package standby

import "golang.org/x/sys/unix"

// DefaultTriggers are the errors by which storage says that it is lost: not there, cut off,
// taken by somebody else, or not to be changed any more. The rest are a request's own fault
// (EINVAL, EFBIG, EOPNOTSUPP), a want of space or memory (ENOSPC, EDQUOT, ENOMEM), or damage
// at one place that waiting doesn't mend (ENODATA, EILSEQ, EBADMSG, EUCLEAN).
// docs/standby.md has a table with who answers what, and why it is in the set or not.
var DefaultTriggers = []unix.Errno{
	// Lost, without more being said.
	unix.EIO,
	// The mount's server, or the way to it, is gone.
	unix.ENOTCONN, unix.ECONNABORTED, unix.ECONNRESET, unix.ECONNREFUSED, unix.EPIPE, unix.ESHUTDOWN,
	unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENETUNREACH, unix.ENETRESET, unix.ENONET, unix.ECOMM,
	unix.ETIMEDOUT, unix.EAGAIN,
	// The device below, or the way to it, is gone.
	unix.ENOLINK, unix.EREMOTEIO, unix.ENODEV, unix.ENXIO, unix.ENOMEDIUM,
	// The file or its handle is gone.
	unix.EBADFD, unix.EBADF, unix.ESTALE, unix.ENOENT,
	// Somebody else took it, or it may not be used any more.
	unix.EBUSY, unix.EBADE, unix.EROFS, unix.EACCES, unix.EPERM,
	unix.ENOKEY, unix.EKEYEXPIRED, unix.EKEYREVOKED, unix.EKEYREJECTED,
}
