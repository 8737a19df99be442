package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Config configures a Handler. Authorize is required; the rest may be empty.
type Config struct {
	// Authorize returns the name of the sender of a request, which is the actor in the audit. An error
	// refuses the request with status 403, or with 401 if it is one of Unauthenticated; the text of the error
	// is sent. An empty name refuses the request as well. Authorize is called for each request, including
	// those for the page's files, before the body is read. Required: without it New returns an error.
	//
	// The path in the request is the Handler's own, such as /v1/keys. GET and HEAD change nothing. POST
	// /v1/backup returns every key and all data, encrypted to recipients that the sender chooses. POST
	// /v1/tokens lets a server join. If browsers send credentials by themselves, or if there are none, also
	// compare Request.Host with the names of the server. Otherwise a foreign page whose name resolves to the
	// server counts as the server's own page.
	Authorize func(*http.Request) (actor string, err error)

	// Cluster is the cluster's name on the page. Empty shows "keyring".
	Cluster string
	// URLs returns the URL of each server's Handler, by the server's ID, including this server:
	// https://10.0.0.1:8443/keyring, for example. Leader-only calls are redirected there, and the page asks
	// the other servers for their status. Take the URLs from a configuration, so that they include servers
	// that are down. For a listed server that does not answer, the page says what to do; for a member that is
	// not listed, it only says that it was not asked. Nil means that no URL is known: the page shows this
	// server alone.
	URLs func() map[raft.ServerID]string
	// Client asks the other servers for their status. Their Authorize must admit it, for example by a
	// certificate of its Transport. Nil means http.DefaultClient.
	Client *http.Client
	// Addr returns the raft address of a server that is added without one, or "". Nil means that an address
	// is required.
	Addr func(raft.ServerID) string
	// Records counts the host's records under a key, for the page and the status. Usually it is the
	// Config.Data of the keyring. Nil shows none.
	Records keyring.Counter
	// RotateEvery is the RotationPolicy.Every of this server, for the advice about servers that differ. Zero
	// means the default.
	RotateEvery time.Duration
	// Buttons adds buttons to the page that rotate and remove keys. Without them, requests from browsers are
	// refused unless they are GET or HEAD.
	Buttons bool
	// Program names the host's commands and files, which the page shows with a problem.
	Program Program
	// Logger receives each request that may change something, with its actor and status, and the panics of
	// the host's functions. It receives no body, no query and no ID of a path, because some of these are
	// secrets. Nil logs nothing.
	Logger hclog.Logger
}

// Unauthenticated returns an error for Config.Authorize: the sender of the request is unknown. The answer has
// status 401 and the challenge as WWW-Authenticate; a browser then asks for a password. Example: Basic
// realm="keyring".
func Unauthenticated(challenge string) error { return unauthenticated{challenge} }

type unauthenticated struct{ challenge string }

func (unauthenticated) Error() string { return "who are you?" }

// Handler is the API and the page of one server. It is safe for concurrent use, and need not be closed.
type Handler struct {
	server Server
	id     raft.ServerID
	cfg    Config
	peers  *http.Client // asks the other servers
	routes http.Handler
}

// New returns the Handler of a server: a *node.Node, or the result of ForKeyring for a *keyring.Keyring. It
// is an error if cfg has no Authorize, because then nobody could be admitted.
//
// Mount it with http.StripPrefix at any path that ends in a slash, on a server with TLS, ReadHeaderTimeout
// and IdleTimeout.
func New(server Server, cfg Config) (*Handler, error) {
	if server == nil {
		return nil, errors.New("admin: no server")
	}
	if cfg.Authorize == nil {
		return nil, errors.New("admin: Config.Authorize is missing: nobody could be admitted")
	}
	if cfg.Cluster == "" {
		cfg.Cluster = "keyring"
	}
	if cfg.Client == nil {
		cfg.Client = http.DefaultClient
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	cfg.Program = cfg.Program.withDefaults()
	st, err := server.Keyring().Status(context.Background())
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	h := &Handler{server: server, id: st.ID, cfg: cfg, peers: withoutRedirects(*cfg.Client)}
	h.routes = orNothing(h.mux())
	return h, nil
}

// mux has what there is.
func (h *Handler) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", h.serve(h.status))
	mux.HandleFunc("GET /v1/cluster", h.serve(h.cluster))
	mux.HandleFunc("POST /v1/keys", h.serve(h.rotate))
	mux.HandleFunc("DELETE /v1/keys/{id}", h.serve(h.remove, "force", "now"))
	mux.HandleFunc("POST /v1/keys/{id}/adopt", h.serve(h.adopt))
	mux.HandleFunc("POST /v1/rewrap", h.serve(h.rewrap))
	mux.HandleFunc("POST /v1/servers", h.serve(h.addServer))
	mux.HandleFunc("DELETE /v1/servers/{id}", h.serve(h.removeServer, "force"))
	mux.HandleFunc("POST /v1/servers/{id}/promote", h.serve(h.promoteServer))
	mux.HandleFunc("POST /v1/servers/{id}/demote", h.serve(h.demoteServer))
	mux.HandleFunc("POST /v1/leader", h.serve(h.transfer))
	mux.HandleFunc("POST /v1/tokens", h.serve(h.joinToken))
	mux.HandleFunc("GET /v1/tokens", h.serve(h.joinTokens))
	mux.HandleFunc("DELETE /v1/tokens/{id}", h.serve(h.withdrawToken))
	mux.HandleFunc("POST /v1/backup", h.backup)
	mux.HandleFunc("POST /v1/backup/{sha256}", h.serve(h.confirmBackup))
	servePage(mux)
	return mux
}

// withoutRedirects is a client that goes nowhere but where it is sent: another server must not lead this one
// to a third.
func withoutRedirects(c http.Client) *http.Client {
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// ServeHTTP answers a request. It refuses requests from pages of another origin, and those that Authorize
// refuses.
//
// The body of a request has at most 64 KiB and must arrive within 10 seconds. The client must read an answer
// within 30 seconds, and a backup at 64 KiB in 30 seconds. The deadlines of the http.Server do not apply to
// these. A client limits the duration of a call by ending the request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	out := &begunWriter{ResponseWriter: w}
	defer h.recovered(out)
	switch {
	case crossOrigin.Check(asUnsafe(r)) != nil:
		respond(out, http.StatusForbidden, "cross-origin request: a page of another origin has sent it")
		return
	case !cleanPath(r.URL):
		respond(out, http.StatusNotFound, "no such path: it has an empty element or a dot element, or does not begin with a slash")
		return
	}
	actor, err := h.cfg.Authorize(r)
	ctx := keyring.WithActor(r.Context(), actor)
	switch {
	case err != nil:
		status := http.StatusForbidden
		if who := (unauthenticated{}); errors.As(err, &who) {
			status = http.StatusUnauthorized
			out.Header().Set("WWW-Authenticate", who.challenge)
		}
		respond(out, status, "not allowed: "+err.Error())
		return
	case keyring.Actor(ctx) == "": // also if it was no UTF-8
		respond(out, http.StatusForbidden, "not allowed: the sender is unknown")
		return
	case changes(r) && byBrowser(r) && !h.cfg.Buttons:
		respond(out, http.StatusForbidden, "not allowed: this server's page is read-only")
		return
	}
	r = r.WithContext(ctx)
	h.routes.ServeHTTP(out, r)
	if changes(r) {
		h.cfg.Logger.Info("answered an admin request", "request", r.Pattern, "by", actor, "status", out.status)
	}
}

// recovered answers in the place of a function of the host's that has panicked: nobody is let in by that, and
// the server goes on.
func (h *Handler) recovered(w *begunWriter) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares so too
		panic(p)
	}
	h.cfg.Logger.Error("a function of the host panicked", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
	if w.begun {
		panic(http.ErrAbortHandler) // the client must not take it for the end of the answer
	}
	respond(w, http.StatusInternalServerError, "a function of this server has panicked: see its log. The request may have been executed")
}

// serve makes a handler of a function that returns what to answer with. The request may have these parameters.
func (h *Handler) serve(answer func(*http.Request) (any, error), names ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := parameters(r, names)
		if err == nil {
			err = readBody(w, r)
		}
		var body any
		if err == nil {
			body, err = answer(r)
		}
		if err != nil {
			h.refuse(w, r, err)
			return
		}
		sendJSON(w, http.StatusOK, body)
	}
}

// leading is where a request has to go that only the leader can do.
type leading struct {
	id  raft.ServerID
	url string // empty if nobody knows
}

// leaderOf finds that in an error. There is none if no leader is known, or if it is this server.
func (h *Handler) leaderOf(err error) (leading, bool) {
	var elsewhere keyring.NotLeaderError
	if !errors.As(err, &elsewhere) || elsewhere.Leader == "" || errors.As(err, new(unknown)) {
		return leading{}, false
	}
	return leading{elsewhere.Leader, h.urls()[elsewhere.Leader]}, true
}

func (h *Handler) urls() map[raft.ServerID]string {
	if h.cfg.URLs == nil {
		return nil
	}
	return h.cfg.URLs()
}

// refuse answers with an error, or sends the request on to the leader. The page's requests are not sent on: a
// browser takes the leader for another origin.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	leader, elsewhere := h.leaderOf(err)
	if elsewhere && leader.url != "" && leader.id != h.id && !byBrowser(r) {
		w.Header().Set("Location", strings.TrimSuffix(leader.url, "/")+r.URL.RequestURI())
		respond(w, http.StatusTemporaryRedirect, err.Error())
		return
	}
	status, text := statusOf(err), err.Error()
	if elsewhere && leader.url != "" {
		text += ", at " + leader.url
	}
	if errors.Is(err, keyring.ErrNoLeader) {
		text += h.cfg.Program.noLeader()
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	respond(w, status, text)
}
