package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"holdfast/api"
)

// request speaks to the server of a device, whoever that is.
func (h *host) request(ctx context.Context, name, method, path string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://holdfast"+path, in)
	if err != nil {
		return nil, err
	}
	return h.client(name).Do(r)
}

// client has a connection of its own for each request.
func (h *host) client(name string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.runDir(), "devices", name, "sock"))
	}}}
}

// call is a request that is answered with a T, or an error.
func call[T any](ctx context.Context, h *host, name, method, what string, body any) (*T, error) {
	h.t.Helper()
	h.up(name)
	resp, err := h.request(ctx, name, method, "/v1/devices/"+name+what, body)
	if err != nil {
		return nil, api.Errorf(api.CodeUnreachable, "%w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, api.Errorf(api.CodeUnreachable, "%w", err)
	}
	if resp.StatusCode >= 400 {
		e := new(api.Error)
		if err := json.Unmarshal(data, e); err != nil || e.Message == "" || e.Code.Status() != resp.StatusCode {
			h.t.Errorf("%s %s%s: %s %s", method, name, what, resp.Status, data)
		}
		return nil, e
	}
	out := new(T)
	if len(data) > 0 {
		err = json.Unmarshal(data, out)
	}
	return out, err
}

// Create waits for the end of a server that could not create its device, and has nothing else.
func (h *host) Create(ctx context.Context, spec api.Spec) (*api.Device, error) {
	h.t.Helper()
	dev, err := call[api.Device](ctx, h, spec.Name, "PUT", "", spec)
	if api.CodeOf(err) != api.CodeInvalid && err != nil && !slices.Contains(h.recorded(), spec.Name) {
		if code := h.exits(spec.Name); code != ExitOver {
			h.t.Errorf("%s: exit code %d after a creation that failed", spec.Name, code)
		}
	}
	return dev, err
}

func (h *host) Device(ctx context.Context, name string) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "GET", "", nil)
}

// Remove waits for the end of a server that has removed its device.
func (h *host) Remove(ctx context.Context, name string, force bool) error {
	h.t.Helper()
	_, err := call[struct{}](ctx, h, name, "DELETE", "?force="+strconv.FormatBool(force), nil)
	if err == nil {
		if code := h.exits(name); code != ExitOver {
			h.t.Errorf("%s: exit code %d after a removal", name, code)
		}
	}
	return err
}

// Leave waits for the end of a server that has left its device.
func (h *host) Leave(ctx context.Context, name string) error {
	h.t.Helper()
	_, err := call[struct{}](ctx, h, name, "POST", "/leave", api.LeaveRequest{})
	if err == nil {
		if code := h.exits(name); code != ExitLeft {
			h.t.Errorf("%s: exit code %d after it was left", name, code)
		}
	}
	return err
}

func (h *host) Recover(ctx context.Context, name string, force bool) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "POST", "/recover", api.Force{Force: force})
}

func (h *host) Replace(ctx context.Context, name string, r api.ReplaceRequest) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "POST", "/replace", r)
}

func (h *host) Attach(ctx context.Context, name, consumer string) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "PUT", "/leases/"+url.PathEscape(consumer), nil)
}

func (h *host) Detach(ctx context.Context, name, consumer string) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "DELETE", "/leases/"+url.PathEscape(consumer), nil)
}

func (h *host) SetStandby(ctx context.Context, name string, on bool) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "PUT", "/standby", api.Switch{On: on})
}

func (h *host) Wait(ctx context.Context, name string, states []string) (*api.Device, error) {
	h.t.Helper()
	return call[api.Device](ctx, h, name, "GET", "/wait?"+url.Values{"state": states}.Encode(), nil)
}
