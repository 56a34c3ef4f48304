package api

import (
	"errors"
	"fmt"
	"net/http"
)

// A Code says what kind of failure an error is, for programs.
type Code string

// The codes, and the HTTP status that each travels with.
const (
	CodeInvalid  Code = "invalid"   // 400: the request makes no sense
	CodeNotFound Code = "not_found" // 404: no device of that name
	CodeExists   Code = "exists"    // 409: the name is taken
	CodeConflict Code = "conflict"  // 409: an image belongs to another device, or isn't the one the name stands for
	CodeBusy     Code = "busy"      // 423: somebody uses the device (see Error.Users), or the directory
	CodeImage    Code = "image"     // 422: an image is missing, malformed or not free
	CodeDriver   Code = "driver"    // 503: the kernel can't serve devices now
	// CodeNotSupported is 409: standby can't be had, as a fuse is off.
	CodeNotSupported Code = "not_supported"
	CodeStopping     Code = "stopping"    // 503: the manager or the server is going away
	CodeInternal     Code = "internal"    // 500: anything else
	CodeUnreachable  Code = "unreachable" // only from a Client, or of a server that the manager asked: it doesn't answer
)

// Status is the HTTP status that a code travels with.
func (c Code) Status() int {
	switch c {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeExists, CodeConflict, CodeNotSupported:
		return http.StatusConflict
	case CodeBusy:
		return http.StatusLocked
	case CodeImage:
		return http.StatusUnprocessableEntity
	case CodeDriver, CodeStopping:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Error is a failure of the manager or a server, as it also travels over the socket.
type Error struct {
	Message string `json:"error"`
	Code    Code   `json:"code"`
	// Users holds the device, when Code is CodeBusy.
	Users []User `json:"users,omitempty"`

	cause error
}

var _ error = (*Error)(nil)

func (e *Error) Error() string { return e.Message }

// Unwrap is the cause, on the answering side of the socket.
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an Error; a %w in the format becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Message: err.Error(), Code: code, cause: errors.Unwrap(err)}
}

// CodeOf is the code of an error of this package, CodeInternal for others.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// AsError gives any error the form that travels.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Message: err.Error(), Code: CodeInternal, cause: err}
}
