package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Client calls the Handler of a server, and follows its redirects to the leader. It is safe for concurrent
// use.
type Client struct {
	url  string
	http *http.Client
}

// NewClient returns the Client of a Handler at a URL, such as https://10.0.0.1:8443/keyring. HOST:PORT alone
// means https, and http on a loopback address.
//
// with sends the requests. It must supply what Config.Authorize checks: a certificate, or a Transport that
// adds a header, because net/http removes headers when a redirect leads to another host. Nil means
// http.DefaultClient. If with has no CheckRedirect, the Client follows at most three redirects, and none from
// https to http.
func NewClient(at string, with *http.Client) (*Client, error) {
	at, err := parseURL(at)
	if err != nil {
		return nil, err
	}
	if with == nil {
		with = http.DefaultClient
	}
	hc := *with
	if hc.CheckRedirect == nil {
		hc.CheckRedirect = checkRedirect
	}
	return &Client{at, &hc}, nil
}

func parseURL(text string) (string, error) {
	if !strings.Contains(text, "://") {
		scheme := "https://"
		host, _, err := net.SplitHostPort(text)
		if ip := net.ParseIP(host); err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()) {
			scheme = "http://"
		}
		text = scheme + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", err
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "", u.User != nil:
		return "", fmt.Errorf("%.200q: want a URL such as https://HOST:PORT", text)
	}
	return u.Scheme + "://" + u.Host + strings.TrimRight(u.EscapedPath(), "/"), nil
}

const maxRedirects = 3

func checkRedirect(next *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return errors.New("too many redirects: each server says that another one leads")
	case next.URL.Scheme != "https" && via[0].URL.Scheme == "https":
		return errors.New("a redirect from https to " + next.URL.Scheme)
	}
	return nil
}

// Error is the error that a Handler has answered.
type Error struct {
	Status int    // of HTTP
	Text   string // one line without control characters
}

// Error begins with the status.
func (e *Error) Error() string {
	return strings.TrimRight(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status)), " ") + ": " + e.Text
}

// Call makes a request without a method here, for example to an API of the host's own at the same URL. It
// sends in as JSON, unless in is nil, and decodes the answer into out. path begins with a slash. An answer
// with a status other than 200 is an *Error.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	const most = 64 << 20 // more than any list that there is
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(out); err != nil {
		return fmt.Errorf("the server at %s is no keyring: %w", c.url, err)
	}
	return nil
}

// send returns the answer if its status is 200.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b) // which http can read again after a redirect
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, answerError(resp)
	}
	return resp, nil
}

// answerError is the error that an answer is: its status, and its error or else how its text begins.
func answerError(resp *http.Response) error {
	const most = 4 << 10
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return fmt.Errorf("%s: %w", line(resp.Status), err)
	}
	var e errorAnswer
	if json.Unmarshal(b, &e) != nil || e.Error == "" {
		e.Error, _, _ = strings.Cut(strings.TrimSpace(string(b)), "\n")
	}
	return &Error{resp.StatusCode, flat(cmp.Or(e.Error, "the answer has no text"))}
}

// hangs reports whether a call has failed because a process takes connections and does not answer: the time
// was over, and not while it was connected to.
func hangs(err error) bool {
	op := (*net.OpError)(nil)
	return errors.Is(err, context.DeadlineExceeded) && !(errors.As(err, &op) && op.Op == "dial")
}

// isBad reports whether a call has failed because of what was answered: an error, or nothing of this API.
func isBad(err error) bool {
	return errors.As(err, new(*Error)) || errors.As(err, new(*json.SyntaxError)) || errors.As(err, new(*json.UnmarshalTypeError))
}

// Status returns the status of the server that is asked.
func (c *Client) Status(ctx context.Context) (out Status, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/status", nil, &out)
	return out, err
}

// Overview returns the state of the cluster as the server that is asked sees it: it asks all others.
func (c *Client) Overview(ctx context.Context) (out Overview, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/cluster", nil, &out)
	return out, err
}

// Rotate makes a new key. It returns the key when that is active or, with RotateOptions.Publish,
// prepublished. After an *Error with status 500 there may be a new key all the same.
func (c *Client) Rotate(ctx context.Context, o keyring.RotateOptions) (out KeyStatus, err error) {
	in := rotateRequest{Full: o.Full, Revoke: o.Revoke, Compromised: o.Compromised}
	if wait := time.Until(o.Publish); !o.Publish.IsZero() && wait > 0 {
		in.Publish = wait.String()
	}
	err = c.Call(ctx, http.MethodPost, "/v1/keys", in, &out)
	return out, err
}

// Remove removes a key: see Keyring.Remove. It may take hours; only ctx limits that. It may be called again.
func (c *Client) Remove(ctx context.Context, id keyring.KeyID, o keyring.RemoveOptions) error {
	q := url.Values{}
	if o.Force {
		q.Set("force", "true")
	}
	if o.Now {
		q.Set("now", "true")
	}
	return c.Call(ctx, http.MethodDelete, "/v1/keys/"+id.String()+"?"+q.Encode(), nil, &keyAnswer{})
}

// Adopt adopts the key of a file that the keyring does not know: see Keyring.Adopt.
func (c *Client) Adopt(ctx context.Context, id keyring.KeyID) error {
	return c.Call(ctx, http.MethodPost, "/v1/keys/"+id.String()+"/adopt", nil, &keyAnswer{})
}

// Rewrap rewraps the key files of the server that is asked under its present KEKs alone, and returns the
// server's ID.
func (c *Client) Rewrap(ctx context.Context) (raft.ServerID, error) {
	var out rewrapAnswer
	err := c.Call(ctx, http.MethodPost, "/v1/rewrap", nil, &out)
	return out.Rewrapped, err
}

// AddServer admits a server, or changes the address of a member, and returns the address. An empty addr means
// that of Config.Addr.
func (c *Client) AddServer(ctx context.Context, id raft.ServerID, addr string) (string, error) {
	var out serverRequest
	err := c.Call(ctx, http.MethodPost, "/v1/servers", serverRequest{ID: id, Addr: addr}, &out)
	return out.Addr, err
}

// AddNonvoter is AddServer for a permanent non-voter: see Keyring.AddNonvoter.
func (c *Client) AddNonvoter(ctx context.Context, id raft.ServerID, addr string) (string, error) {
	var out serverRequest
	err := c.Call(ctx, http.MethodPost, "/v1/servers", serverRequest{id, addr, true}, &out)
	return out.Addr, err
}

// PromoteServer gives a server a vote: see Keyring.PromoteServer.
func (c *Client) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return c.Call(ctx, http.MethodPost, "/v1/servers/"+url.PathEscape(string(id))+"/promote", nil, &serverRequest{})
}

// DemoteServer takes a server's vote away: see Keyring.DemoteServer.
func (c *Client) DemoteServer(ctx context.Context, id raft.ServerID) error {
	return c.Call(ctx, http.MethodPost, "/v1/servers/"+url.PathEscape(string(id))+"/demote", nil, &serverRequest{})
}

// TransferLeadership transfers the leadership to the voter with that ID, or to any voter if to is empty: see
// Keyring.TransferLeadership.
func (c *Client) TransferLeadership(ctx context.Context, to raft.ServerID) error {
	return c.Call(ctx, http.MethodPost, "/v1/leader", leaderRequest{to}, &leaderRequest{})
}

// RemoveServer removes a server from the cluster: see Keyring.RemoveServer.
func (c *Client) RemoveServer(ctx context.Context, id raft.ServerID, o keyring.RemoveServerOptions) error {
	path := "/v1/servers/" + url.PathEscape(string(id))
	if o.Force {
		path += "?force=true"
	}
	return c.Call(ctx, http.MethodDelete, path, nil, &serverRequest{})
}

// JoinToken makes a token with which a server may join. It is a secret. Zero for ttl means an hour.
func (c *Client) JoinToken(ctx context.Context, id raft.ServerID, ttl time.Duration) (string, error) {
	in := tokenRequest{ID: id}
	if ttl != 0 {
		in.TTL = ttl.String()
	}
	var out tokenAnswer
	err := c.Call(ctx, http.MethodPost, "/v1/tokens", in, &out)
	return out.Token, err
}

// JoinTokens returns the tokens that have not ended, without their secrets.
func (c *Client) JoinTokens(ctx context.Context) (out []keyring.JoinTokenInfo, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/tokens", nil, &out)
	return out, err
}

// WithdrawJoinToken ends the token with that JoinTokenInfo.ID.
func (c *Client) WithdrawJoinToken(ctx context.Context, id string) error {
	return c.Call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, &keyring.JoinTokenInfo{})
}

// Backup identifies a backup: see keyring.VerifyOptions.
type Backup struct {
	SHA256 [32]byte
	Signer keyring.BackupSigner
}

// Backup writes a backup to w that the age recipients can decrypt. It is complete only if there is no error.
// When the output is safe, call ConfirmBackup: until then the cluster does not count it as a backup.
func (c *Client) Backup(ctx context.Context, w io.Writer, to ...string) (Backup, error) {
	resp, err := c.send(ctx, http.MethodPost, "/v1/backup", backupRequest{to})
	if err != nil {
		return Backup{}, err
	}
	defer resp.Body.Close()
	digest := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, digest), resp.Body); err != nil {
		return Backup{}, err
	}
	made := Backup{SHA256: [32]byte(digest.Sum(nil))}
	if resp.Trailer.Get(trailerDigest) != hex.EncodeToString(made.SHA256[:]) {
		return Backup{}, fmt.Errorf("the backup is not complete: %s", flat(cmp.Or(resp.Trailer.Get(trailerError), "it is cut short")))
	}
	if signer := resp.Trailer.Get(trailerSigner); signer != "" {
		if err := made.Signer.UnmarshalText([]byte(signer)); err != nil {
			return Backup{}, fmt.Errorf("the signer of the backup: %w", err)
		}
	}
	return made, nil
}

// ConfirmBackup tells the cluster that a backup is safe. It may be called again.
func (c *Client) ConfirmBackup(ctx context.Context, sha256 [32]byte) error {
	return c.Call(ctx, http.MethodPost, "/v1/backup/"+hex.EncodeToString(sha256[:]), nil, &backupAnswer{})
}
