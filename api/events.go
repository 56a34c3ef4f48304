package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// EventsQuery says which events are wanted.
type EventsQuery struct {
	Follow bool   // those to come as well, until ctx ends
	Device string // of this device only; "": all
}

// Events calls do with each event, in order.
func (c *Client) Events(ctx context.Context, q EventsQuery, do func(Event) error) error {
	path := "/v1/events?follow=" + strconv.FormatBool(q.Follow)
	if q.Device != "" {
		path += "&device=" + url.QueryEscape(q.Device)
	}
	resp, err := c.send(ctx, http.MethodGet, path, nil)
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
			switch {
			case ctx.Err() != nil:
				return nil
			case !q.Follow && err == io.EOF: // and not ErrUnexpectedEOF: an answer that was cut off
				return nil
			}
			return c.unreachable(ctx, err)
		}
		if err := do(e); err != nil {
			return err
		}
	}
}
