package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
)

// NewServerClient is a client of the server of one device, without the manager between them: for
// what both understand, and what follows here. It does not connect yet.
func NewServerClient(runDir, name string) *Client {
	return newClient(&Client{socket: filepath.Join(runDir, "devices", name, "sock"), server: name})
}

// Server asks a server who it is.
func (c *Client) Server(ctx context.Context) (*ServerInfo, error) {
	return call[ServerInfo](ctx, c, http.MethodGet, "/v1", nil)
}

// CreateHere has a server create its device.
func (c *Client) CreateHere(ctx context.Context, spec Spec) (*Device, error) {
	return call[Device](ctx, c, http.MethodPut, devicePath(spec.Name), spec)
}

// Leave has a server leave its device to the next one, and end.
func (c *Client) Leave(ctx context.Context, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, devicePath(name)+"/leave", LeaveRequest{})
	return err
}

// TargetLease takes or drops a target's lease: not to need one is no error.
func (c *Client) TargetLease(ctx context.Context, name, kind string, has bool) (*Device, error) {
	method := http.MethodDelete
	if has {
		method = http.MethodPut
	}
	return call[Device](ctx, c, method, devicePath(name)+"/leases/"+url.PathEscape(kind)+"?target=true", nil)
}

// JournalQuery says which events of a server are wanted: those behind number Since of the
// instance. Those of another one all are.
type JournalQuery struct {
	Instance string
	Since    uint64
}

// Journal follows a server's events until ctx ends, or the server does: which is an error. The
// first one is of EventJournal.
func (c *Client) Journal(ctx context.Context, name string, q JournalQuery, do func(Event) error) error {
	v := url.Values{"follow": {"true"}}
	if q.Instance != "" {
		v.Set("boot", q.Instance)
		v.Set("since", strconv.FormatUint(q.Since, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, devicePath(name)+"/events?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return c.failure(resp)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return c.unreachable(ctx, err)
		}
		if err := do(e); err != nil {
			return err
		}
	}
}

// StopServers has the manager end all servers in order.
func (c *Client) StopServers(ctx context.Context, r StopRequest) (*StopResult, error) {
	return call[StopResult](ctx, c, http.MethodPost, "/v1/stop", r)
}
