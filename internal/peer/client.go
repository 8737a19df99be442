package peer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxDials is the most dials to one server that are under way at a time. Together with those of raft they have to
// stay below MaxPendingPerAddr, because a port closes the oldest of more than that. maxConns is the most
// connections to one server.
const (
	maxDials = 8
	maxConns = 32
)

// Client calls the Servers of other servers, over connections that it keeps. It is safe for
// concurrent use.
type Client struct {
	dialer    *Dialer
	dials     *limits[string] // by pool host
	transport *http.Transport
	life      context.Context // ends with Close: http.Transport lets a dial outlive its call
	end       context.CancelFunc

	mu     sync.Mutex // guards below
	closed bool
	wg     sync.WaitGroup // calls and dials; grows under mu only
}

// NewClient returns a client that dials with d.
func NewClient(d *Dialer) *Client {
	c := &Client{dialer: d, dials: newLimits[string](maxDials)}
	c.life, c.end = context.WithCancel(context.Background())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	c.transport = &http.Transport{
		DialTLSContext:         c.dial,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    4,
		MaxConnsPerHost:        maxConns,
		IdleConnTimeout:        time.Minute, // shorter than a Server's
		MaxResponseHeaderBytes: maxHeader,
	}
	return c
}

// Call sends body to the path at a server, which is expected at addr, and returns the
// response; an empty ID is AnyServer, as in ClientConfig. ctx should have a deadline: a peer
// may never answer. A refusal comes back as a *Refusal. A call that returns an error may still have arrived.
func (c *Client) Call(ctx context.Context, server, addr, path string, body []byte) ([]byte, error) {
	if !c.begin() {
		return nil, net.ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	b, err := c.call(ctx, server, addr, path, body)
	if err != nil {
		err = cmp.Or(over(ctx), err) // hanging up makes the handler fail, and that answer may come first
	}
	if err != nil {
		return nil, callError(path, server, err)
	}
	return b, nil
}

func callError(path, server string, err error) error {
	return fmt.Errorf("call %s of server %q: %w", path, server, err)
}

// over is why ctx has ended, or is about to: the other side knows the deadline too.
func over(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

func (c *Client) call(ctx context.Context, server, addr, path string, body []byte) ([]byte, error) {
	req, err := newCall(ctx, poolHost(server, addr), path, body)
	if err != nil {
		return nil, err
	}
	// RoundTrip, because an http.Client would follow redirects.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return readAnswer(resp)
}

func newCall(ctx context.Context, host, path string, body []byte) (*http.Request, error) {
	if len(body) > MaxMessage {
		return nil, fmt.Errorf("request of %d bytes, at most %d fit", len(body), MaxMessage)
	}
	u := url.URL{Scheme: "https", Host: host, Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	if end, ok := ctx.Deadline(); ok {
		req.Header.Set(timeoutHeader, strconv.FormatInt(max(0, time.Until(end).Milliseconds()), 10))
	}
	return req, nil
}

func readAnswer(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxMessage+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxMessage {
		return nil, fmt.Errorf("response of more than %d bytes", MaxMessage)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return b, nil
	case statusRefused:
		// Only a refusal is expected here, so any answer's type does.
		if _, err = DecodeAnswer[HoldAnswer](b); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("HTTP status %d", resp.StatusCode)
}

// Close ends the calls under way, waits for them, and closes the connections.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.wg.Wait()
	c.transport.CloseIdleConnections()
}

// CloseIdle closes the connections that no call is using.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

// begin counts a call or a dial, unless the client is closed.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	return true
}

// bound returns a context that ends with ctx and with the client.
func (c *Client) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() { stop(); cancel() }
}

func (c *Client) dial(ctx context.Context, _, hostport string) (net.Conn, error) {
	server, addr, err := splitPoolHost(hostport)
	if err != nil {
		return nil, err
	}
	if !c.begin() {
		return nil, net.ErrClosed
	}
	defer c.wg.Done()
	ctx, cancel := c.bound(ctx)
	defer cancel()
	wait, stop := context.WithTimeout(ctx, maxConns/maxDials*DefaultTimeout)
	defer stop()
	release, ok := c.dials.acquire(wait, hostport)
	if !ok {
		return nil, fmt.Errorf("dial server %q at %s: too many dials are under way", server, addr)
	}
	defer release()
	conn, err := c.dialer.Dial(ctx, server, addr, ALPNPeer)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// poolHost is what the transport keeps connections by. It has the server ID in it, so that
// no call goes out over a connection to another server which had the same address.
func poolHost(server, addr string) string {
	return "s" + hex.EncodeToString([]byte(server)) + ".a" + hex.EncodeToString([]byte(addr))
}

func splitPoolHost(hostport string) (server, addr string, err error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return "", "", err
	}
	s, a, ok := strings.Cut(strings.TrimPrefix(host, "s"), ".a")
	id, errID := hex.DecodeString(s)
	at, errAddr := hex.DecodeString(a)
	if !ok || errID != nil || errAddr != nil {
		return "", "", errors.New("not a host of the pool")
	}
	return string(id), string(at), nil
}
