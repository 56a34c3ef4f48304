package api

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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's name in the run directory.
const SocketName = "control.sock"

// APIVersion is the version in the paths of the API.
const APIVersion = 1

// Where the manager and the servers live unless told otherwise.
const (
	DefaultRunDir   = "/run/holdfast"
	DefaultStateDir = "/var/lib/holdfast"
)

// maxReply bounds what a client reads.
const maxReply = 64 << 20

// A Client talks to the manager of one run directory, or to a server of it. Its methods return
// errors of type *Error; they end early when their context does.
type Client struct {
	socket string
	server string // of this device's server, and not of the manager; "": of the manager
	http   *http.Client
}

// NewClient does not connect yet.
func NewClient(runDir string) *Client {
	return newClient(&Client{socket: filepath.Join(runDir, SocketName)})
}

func newClient(c *Client) *Client {
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		Proxy:             nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			conn, err := dialSocket(ctx, &d, c.socket)
			if err != nil {
				return nil, err
			}
			if err := alive(conn, c.who()); err != nil {
				conn.Close()
				return nil, err
			}
			return conn, nil
		},
	}}
	return c
}

// who is what the client talks to, for messages.
func (c *Client) who() string {
	if c.server != "" {
		return fmt.Sprintf("the server of device %q", c.server)
	}
	return "the manager"
}

// HTTP is the client below, for what has no method here (/metrics): any host name in a URL will do.
func (c *Client) HTTP() *http.Client { return c.http }

// Daemon asks who answers.
func (c *Client) Daemon(ctx context.Context) (*DaemonInfo, error) {
	return call[DaemonInfo](ctx, c, http.MethodGet, "/v1", nil)
}

// Snapshot asks for everything.
func (c *Client) Snapshot(ctx context.Context) (*Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodGet, "/v1/devices", nil)
}

// Brief asks for everything but the users of devices: for those the manager looks at every
// process.
func (c *Client) Brief(ctx context.Context) (*Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodGet, "/v1/devices"+withoutUsers, nil)
}

const withoutUsers = "?users=false"

// Device asks for one device.
func (c *Client) Device(ctx context.Context, name string) (*Device, error) {
	return c.device(ctx, name, "")
}

// BriefDevice asks for one device without its users.
func (c *Client) BriefDevice(ctx context.Context, name string) (*Device, error) {
	return c.device(ctx, name, withoutUsers)
}

func (c *Client) device(ctx context.Context, name, query string) (*Device, error) {
	if name == "" {
		return nil, Errorf(CodeInvalid, "a device has a name")
	}
	return call[Device](ctx, c, http.MethodGet, devicePath(name)+query, nil)
}

// Create makes a device. Image paths must be absolute: the server has another
// working directory.
func (c *Client) Create(ctx context.Context, spec Spec) (*Device, error) {
	if err := CheckSpec(&spec); err != nil {
		return nil, err
	}
	return call[Device](ctx, c, http.MethodPost, "/v1/devices", spec)
}

// Remove takes a device away.
func (c *Client) Remove(ctx context.Context, name string, force bool) error {
	if name == "" {
		return Errorf(CodeInvalid, "a device has a name")
	}
	path := devicePath(name)
	if force {
		path += "?force=true"
	}
	_, err := call[struct{}](ctx, c, http.MethodDelete, path, nil)
	return err
}

// Upgrade has another process take over.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (*UpgradeResult, error) {
	return call[UpgradeResult](ctx, c, http.MethodPost, "/v1/upgrade", r)
}

// Recover tries to recover a device now.
func (c *Client) Recover(ctx context.Context, name string, force bool) (*Device, error) {
	return call[Device](ctx, c, http.MethodPost, devicePath(name)+"/recover", Force{force})
}

// Attach takes a lease on a device for a consumer.
func (c *Client) Attach(ctx context.Context, name, consumer string) (*Device, error) {
	return call[Device](ctx, c, http.MethodPut, devicePath(name)+"/leases/"+url.PathEscape(consumer), nil)
}

// Detach drops a consumer's lease.
func (c *Client) Detach(ctx context.Context, name, consumer string) (*Device, error) {
	return call[Device](ctx, c, http.MethodDelete, devicePath(name)+"/leases/"+url.PathEscape(consumer), nil)
}

// SetStandby sets STANDBY by hand, or ends it without a resume.
func (c *Client) SetStandby(ctx context.Context, name string, on bool) (*Device, error) {
	return call[Device](ctx, c, http.MethodPut, devicePath(name)+"/standby", Switch{on})
}

// Replace puts another file in the place of one of a device's.
func (c *Client) Replace(ctx context.Context, name string, r ReplaceRequest) (*Device, error) {
	return call[Device](ctx, c, http.MethodPost, devicePath(name)+"/replace", r)
}

// SetKey turns the standby check on by hand, or takes that back.
func (c *Client) SetKey(ctx context.Context, on bool) (*KeyInfo, error) {
	return call[KeyInfo](ctx, c, http.MethodPut, "/v1/standby-check", Switch{on})
}

// Attr reads an attribute, or lists a directory of them.
func (c *Client) Attr(ctx context.Context, path string) (*AttrInfo, error) {
	return call[AttrInfo](ctx, c, http.MethodGet, attrPath(path), nil)
}

// SetAttr writes to an attribute.
func (c *Client) SetAttr(ctx context.Context, path, value string) error {
	_, err := call[struct{}](ctx, c, http.MethodPut, attrPath(path), AttrValue{value})
	return err
}

func attrPath(path string) string {
	return (&url.URL{Path: "/v1/attr/" + strings.Trim(path, "/")}).EscapedPath()
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

// send makes a request; who gets an answer closes its body.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, Errorf(CodeInvalid, "%w", err)
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+path, in)
	if err != nil {
		return nil, Errorf(CodeInvalid, "%w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return resp, nil
}

// failure is the error in an answer.
func (c *Client) failure(resp *http.Response) error {
	e := new(Error)
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil || json.Unmarshal(data, e) != nil || e.Message == "" {
		return Errorf(CodeInternal, "%q answers %s, which is not holdfast's way", c.socket, resp.Status)
	}
	return e
}

func call[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return nil, c.failure(resp)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	out := new(T)
	if len(data) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return nil, Errorf(CodeInternal, "%q answers what is not holdfast's: %w", c.socket, err)
	}
	return out, nil
}

// unreachable says why there was no answer.
func (c *Client) unreachable(ctx context.Context, err error) *Error {
	var op *net.OpError
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(ctx.Err(), context.Canceled):
		return Errorf(CodeInternal, "gave up waiting for %s: %w", c.who(), context.Cause(ctx))
	case ctx.Err() != nil:
		return Errorf(CodeUnreachable, "no answer from %s on %q: %w", c.who(), c.socket, context.Cause(ctx))
	case errors.Is(err, fs.ErrPermission):
		return Errorf(CodeUnreachable, "not permitted to talk to %s on %q: it takes root (%w)", c.who(), c.socket, fs.ErrPermission)
	case errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOTDIR):
		return Errorf(CodeUnreachable, "%s on %q does not take the connection, and may hang: %w", c.who(), c.socket, op.Err)
	case errors.As(err, &op) && op.Op == "dial" && c.server != "":
		return Errorf(CodeUnreachable, "no server of device %q listens on %q (%w)", c.server, c.socket, op.Err)
	case errors.As(err, &op) && op.Op == "dial":
		return Errorf(CodeUnreachable, "no manager listens on %q: start one with 'holdfast daemon', or name its directory with --run-dir (%w)", c.socket, op.Err)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &Error{Message: fmt.Sprintf("%s on %q hung up: %v", c.who(), c.socket, err), Code: CodeUnreachable, cause: err}
}
