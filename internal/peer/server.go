package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxHeader   = 8 << 10
	contentType = "application/octet-stream"

	// timeoutHeader has the milliseconds that the caller still waits. Clocks need not agree.
	timeoutHeader = "Keyring-Timeout"

	// A body of more than shortBody is long. Of each server, maxLong long bodies are read at a time.
	shortBody = 64 << 10
	maxLong   = 4

	// statusRefused is the status of a response whose body is a Refusal.
	statusRefused = http.StatusForbidden
)

// Handler answers one call. from is the identity that the connection has proved. An error that is a *Refusal is
// sent to the caller; of any other error the caller learns only that there was one. ctx ends when the caller
// hangs up or the Server closes.
type Handler func(ctx context.Context, from Identity, path string, body []byte) ([]byte, error)

// ServerOptions configure a Server.
type ServerOptions struct {
	// Timeout bounds the reading of a request, and the writing of a response, but not the handler. Zero
	// means 30 seconds.
	//
	// Of the bodies of more than 64 KiB that one server sends, four are read at a time. The others wait
	// for twice as long at most, and have Timeout again once they are read.
	Timeout time.Duration

	// OnError, if set, is told of the errors that callers do not see. It is called
	// concurrently. The identity is zero if the error has no caller.
	OnError func(from Identity, path string, err error)
}

// Server answers the calls of a Client.
type Server struct {
	handle Handler
	o      ServerOptions
	http   http.Server
	end    context.CancelFunc // of all handlers' contexts
	accept sync.WaitGroup
	served sync.WaitGroup    // connections; grows only while accept is not done
	long   *limits[Identity] // on long bodies that are read at a time

	mu    sync.Mutex // guards below
	conns map[net.Conn]bool
}

// Serve answers calls on the connections of ln, which are *Conn, with h.
func Serve(ln net.Listener, h Handler, o ServerOptions) *Server {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.OnError == nil {
		o.OnError = func(Identity, string, error) {}
	}
	life, end := context.WithCancel(context.Background())
	s := &Server{handle: h, o: o, end: end, long: newLimits[Identity](maxLong), conns: make(map[net.Conn]bool)}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = http.Server{
		Handler:           http.HandlerFunc(s.serve),
		Protocols:         protocols,
		ReadHeaderTimeout: o.Timeout,
		ReadTimeout:       o.Timeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return life },
		ConnContext:       withConn,
		ConnState:         s.follow,
		ErrorLog:          log.New(errorWriter(o.OnError), "", 0),
	}
	s.accept.Go(func() { s.http.Serve(ln) }) // it returns when ln is closed
	return s
}

// Close closes the listener and the connections, and waits for the handlers, whose contexts
// are over.
func (s *Server) Close() error {
	s.end()
	s.mu.Lock()
	for c := range s.conns {
		cutOff(c)
	}
	s.mu.Unlock()
	err := s.http.Close()
	s.accept.Wait()
	s.served.Wait()
	return err
}

// follow counts the connections whose goroutine in net/http is running, for Close: that of net/http does not
// wait for them, and does wait for peers that do not read.
func (s *Server) follow(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.served.Add(1)
		s.conns[c] = true
	case http.StateClosed:
		delete(s.conns, c)
		s.served.Done()
	}
}

// cutOff closes below TLS, where nothing has to be sent.
func cutOff(c net.Conn) {
	if c, ok := c.(*Conn); ok {
		c.stopTimer()
		c.NetConn().Close()
		return
	}
	c.Close()
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*Conn); ok {
		return context.WithValue(ctx, connKey{}, c)
	}
	return ctx
}

// ConnOf returns the connection on which a call has come, from the context of its Handler, or nil.
func ConnOf(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// writeBy gives the peer Timeout to read what is written next. net/http would count from the request on, and
// include the time of the handler.
func (s *Server) writeBy(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.o.Timeout))
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.writeBy(w)
	conn := ConnOf(r.Context())
	if conn == nil || r.Method != http.MethodPost {
		http.Error(w, "not a call", http.StatusBadRequest)
		return
	}
	from := conn.Identity()
	ctx, cancel, err := callersTime(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer cancel()
	body, err := s.read(ctx, w, r, from)
	switch s.writeBy(w); {
	case errors.Is(err, errCrowded):
		w.Header().Set("Connection", "close") // the rest of the body is not read
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case err != nil:
		http.Error(w, "request is cut short, or is too large", http.StatusBadRequest)
		return
	}
	answer, err := s.answer(ctx, from, r.URL.Path, body)
	s.writeBy(w)
	w.Header().Set("Content-Type", contentType)
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		w.WriteHeader(statusRefused)
	} else if err != nil {
		s.o.OnError(from, r.URL.Path, err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Write(answer)
}

var errCrowded = errors.New("too many long requests of this server at once")

// read reads the body. A misbehaving server can have many connections: what it sends on all of them together
// must not fill the memory.
func (s *Server) read(ctx context.Context, w http.ResponseWriter, r *http.Request, from Identity) ([]byte, error) {
	body := http.MaxBytesReader(w, r.Body, MaxMessage)
	head, err := io.ReadAll(io.LimitReader(body, shortBody))
	if err != nil || len(head) < shortBody {
		return head, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*s.o.Timeout) // more than those before it may take
	defer cancel()
	release, ok := s.long.acquire(ctx, from)
	if !ok {
		return nil, errCrowded
	}
	defer release()
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.o.Timeout)); err != nil {
		return nil, err
	}
	rest, err := io.ReadAll(body)
	return append(head, rest...), err
}

// callersTime returns a context that ends when the caller no longer waits. If the connection breaks without
// notice, this alone ends the call.
func callersTime(r *http.Request) (context.Context, context.CancelFunc, error) {
	text := r.Header.Get(timeoutHeader)
	if text == "" {
		return r.Context(), func() {}, nil
	}
	ms, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is not a number of milliseconds", timeoutHeader)
	}
	const longest = 24 * time.Hour
	left := time.Duration(min(ms, uint64(longest.Milliseconds()))) * time.Millisecond
	ctx, cancel := context.WithTimeout(r.Context(), left)
	return ctx, cancel, nil
}

// answer calls the handler. With a *Refusal as the error it returns the encoded refusal.
func (s *Server) answer(ctx context.Context, from Identity, path string, body []byte) ([]byte, error) {
	b, err := s.handle(ctx, from, path, body)
	if refusal := (*Refusal)(nil); errors.As(err, &refusal) {
		b, encodeErr := Response{Refusal: refusal}.Encode()
		if encodeErr != nil {
			return nil, encodeErr
		}
		return b, err
	}
	if err == nil && len(b) > MaxMessage {
		return nil, fmt.Errorf("response of %d bytes, at most %d fit", len(b), MaxMessage)
	}
	return b, err
}

// errorWriter takes the log of net/http, in which the panics of handlers are.
type errorWriter func(Identity, string, error)

func (f errorWriter) Write(b []byte) (int, error) {
	f(Identity{}, "", errors.New(strings.TrimSpace(string(b))))
	return len(b), nil
}
