package histories

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

const patience = 4 * time.Second // longer than an election

// outcome is what is known of a call.
type outcome int

const (
	done    outcome = iota
	nothing         // it had no effect
	unknown         // it may have had its effect, or may yet
)

// status is what a server says of itself.
type status struct {
	ID, Leader string
	Ready      bool
	Index      uint64
	Secrets    int
	Voters     []string
	Missing    []string
	Keys       []keyStatus
}

// keyStatus is a key, and the index of the log entry that changed it last.
type keyStatus struct {
	ID, State string
	Index     uint64
}

func (s status) active() string {
	for _, k := range s.Keys {
		if k.State == "active" {
			return k.ID
		}
	}
	return ""
}

// call calls the API of a host, and follows it to the leader's.
func (l *lab) call(ctx context.Context, h *host, method, path string, in, out any) (int, outcome) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		l.t.Error(err)
		return 0, nothing
	}
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+h.addr+path, bytes.NewReader(body))
		if err != nil {
			l.t.Error(err)
			return 0, nothing
		}
		resp, err := h.client.Do(req)
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return 0, nothing
		}
		if err != nil {
			return 0, unknown
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch code := resp.StatusCode; {
		case err != nil || code == http.StatusInternalServerError:
			return code, unknown
		case code == http.StatusTemporaryRedirect:
			if h = l.hostOf(resp); h == nil {
				return code, nothing
			}
			continue
		case code != http.StatusOK:
			return code, nothing
		case json.Unmarshal(answer, out) != nil:
			l.t.Errorf("%s %s: %s", method, path, answer)
		}
		return http.StatusOK, done
	}
	return 0, nothing
}

// hostOf is the host that an answer redirects to.
func (l *lab) hostOf(resp *http.Response) *host {
	to, err := resp.Location()
	if err != nil {
		return nil
	}
	for _, h := range l.hosts {
		if h.addr == to.Host {
			return h
		}
	}
	return nil
}

// await waits until a server says of itself what is wanted.
func (l *lab) await(ctx context.Context, h *host, wanted func(status) bool) (last status) {
	l.t.Helper()
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.addr+"/v1/watch", nil)
		if err != nil {
			l.t.Fatal(err)
		}
		resp, err := h.client.Do(req)
		if err != nil {
			<-time.After(pace) // it starts, or is stopped
			continue
		}
		for in := json.NewDecoder(resp.Body); ; {
			var s status
			if in.Decode(&s) != nil {
				break
			}
			l.witness.saw(s)
			if last = s; wanted(s) {
				resp.Body.Close()
				return last
			}
		}
		resp.Body.Close()
	}
	l.t.Fatalf("%s says %+v and never what is wanted: %s", h.id, last, h.log.tail())
	return last
}

// leader is the host that leads, as far as anybody knows.
func (l *lab) leader(ctx context.Context) *host {
	for _, h := range l.hosts {
		var s status
		if _, o := l.call(ctx, h, http.MethodGet, "/v1/status", nil, &s); o != done {
			continue
		}
		if l.witness.saw(s); s.Leader == s.ID {
			return h
		}
	}
	return nil
}
