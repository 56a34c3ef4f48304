package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"holdfast/device"
)

// maxReply bounds what a client reads.
const maxReply = 64 << 20

// A Client talks to the daemon of one run directory. Its methods return errors
// of type *Error; they end early when their context does.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient does not connect yet.
func NewClient(runDir string) *Client {
	c := &Client{socket: filepath.Join(runDir, socketName)}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		Proxy:             nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			return d.DialContext(ctx, "unix", c.socket)
		},
	}}
	return c
}

// Daemon asks who answers.
func (c *Client) Daemon(ctx context.Context) (*DaemonInfo, error) {
	return call[DaemonInfo](ctx, c, http.MethodGet, "/v1", nil)
}

// Snapshot asks for everything.
func (c *Client) Snapshot(ctx context.Context) (*Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodGet, "/v1/devices", nil)
}

// Device asks for one device.
func (c *Client) Device(ctx context.Context, name string) (*Device, error) {
	if name == "" {
		return nil, fail(CodeInvalid, "a device has a name")
	}
	return call[Device](ctx, c, http.MethodGet, devicePath(name), nil)
}

// Create makes a device. Image paths must be absolute: the daemon has another
// working directory.
func (c *Client) Create(ctx context.Context, spec device.Spec) (*Device, error) {
	if err := checkSpec(&spec); err != nil {
		return nil, err
	}
	return call[Device](ctx, c, http.MethodPost, "/v1/devices", spec)
}

// Remove takes a device away.
func (c *Client) Remove(ctx context.Context, name string, force bool) error {
	if name == "" {
		return fail(CodeInvalid, "a device has a name")
	}
	path := devicePath(name)
	if force {
		path += "?force=true"
	}
	_, err := call[struct{}](ctx, c, http.MethodDelete, path, nil)
	return err
}

// devicePath escapes a name; "." and ".." would otherwise be taken for parts of
// the path.
func devicePath(name string) string {
	if name == "." || name == ".." {
		name = "%2E" + name[1:]
		return "/v1/devices/" + name
	}
	return "/v1/devices/" + url.PathEscape(name)
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	if err := checkSocketPath(c.socket); err != nil {
		return nil, fail(CodeInvalid, "%w", err)
	}
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fail(CodeInvalid, "%w", err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+path, in)
	if err != nil {
		return nil, fail(CodeInvalid, "%w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 400 {
		e := new(Error)
		if json.Unmarshal(data, e) != nil || e.Message == "" {
			return nil, fail(CodeInternal, "%q answers %s, which is not a holdfast daemon's way", c.socket, resp.Status)
		}
		return nil, e
	}
	out := new(T)
	if len(data) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fail(CodeInternal, "%q answers something else than a holdfast daemon: %w", c.socket, err)
	}
	return out, nil
}

// unreachable says why there was no answer.
func (c *Client) unreachable(ctx context.Context, err error) *Error {
	var op *net.OpError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fail(CodeInternal, "gave up waiting for the daemon: %w", context.Cause(ctx))
	case ctx.Err() != nil:
		return fail(CodeUnreachable, "no answer from the daemon on %q: %w", c.socket, context.Cause(ctx))
	case errors.Is(err, fs.ErrPermission):
		return fail(CodeUnreachable, "not permitted to talk to the daemon on %q: it takes root", c.socket)
	case errors.As(err, &op) && op.Op == "dial":
		return fail(CodeUnreachable, "no daemon listens on %q: start one with 'holdfast daemon', or name its directory with --run-dir (%w)", c.socket, op.Err)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &Error{Message: fmt.Sprintf("the daemon on %q hung up: %v", c.socket, err), Code: CodeUnreachable, cause: err}
}
