package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// defaultServer is where init puts the first server.
const defaultServer = "http://127.0.0.1:8001"

const (
	statusTime = 5 * time.Second  // for keys status: the server that is asked gives the others peerTime
	answerTime = 90 * time.Second // for what waits for a leader, which takes 30 seconds at most
)

// client calls the API of a server, and follows it to the leader.
type client struct{ base string }

// serverURL is the URL of a server's API. Without a scheme it is http, as serve has it.
func serverURL(text string) (string, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("-server: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.Fragment != "":
		return "", fmt.Errorf("-server %q: want http://HOST:PORT", text)
	}
	return u.Scheme + "://" + u.Host, nil
}

// call sends in as JSON, if it is not nil, and decodes the answer.
func (c client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b) // which http can read again after a redirect
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answerError(resp)
	}
	const most = 64 << 20 // more than any list that there is
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(out); err != nil {
		return fmt.Errorf("what answers at %s is no control plane: %w", c.base, err)
	}
	return nil
}

// hangs reports whether a call has failed because a process takes connections and does not answer: the time was over, and not
// while it was connected to.
func hangs(err error) bool {
	op := (*net.OpError)(nil)
	return errors.Is(err, context.DeadlineExceeded) && !(errors.As(err, &op) && op.Op == "dial")
}

// within is call, for what is answered at once: a server that takes connections and hangs would keep its caller for ever.
func (c client) within(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := c.call(ctx, method, path, in, out)
	if hangs(err) {
		err = fmt.Errorf("%s takes connections and has not answered within %v: its process or its disk may hang. Ask another server, with -server: what it says of this one tells what to do: %w", c.base, limit, err)
	}
	return err
}

// answerError is the error that an answer is: its status, and its error or else how its text begins.
func answerError(resp *http.Response) error {
	const most = 4 << 10
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return fmt.Errorf("%s: %w", line(resp.Status), err)
	}
	var e struct{ Error string }
	if json.Unmarshal(b, &e) != nil || e.Error == "" {
		e.Error, _, _ = strings.Cut(strings.TrimSpace(string(b)), "\n")
	}
	return fmt.Errorf("%s: %s", line(resp.Status), flat(cmp.Or(e.Error, "the answer has no text")))
}

// cli is the command line of the parts that are no server.
type cli struct {
	client
	in       io.Reader
	out      io.Writer
	warn     io.Writer
	terminal io.Writer // what shows progress, or io.Discard
	secret   io.Writer // what a secret is written to, as it was put unless it is a terminal
}

// flags parses those of a command, and wants so many arguments beside them.
func flags(fs *flag.FlagSet, args []string, n int) ([]string, error) {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		return nil, usage{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	if fs.NArg() != n {
		return nil, usage{fmt.Errorf("%s takes %s after its flags, not %d", fs.Name(), arguments(n), fs.NArg())}
	}
	return fs.Args(), nil
}

func arguments(n int) string {
	switch n {
	case 0:
		return "no arguments"
	case 1:
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

// secretURL escapes a path, but for its slashes.
func secretURL(path string) string { return "/v1/secrets/" + (&url.URL{Path: path}).EscapedPath() }

func (c cli) put(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("put", flag.ContinueOnError)
	version, empty := fs.String("if", "", ""), fs.Bool("empty", false, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	var in putRequest
	if *version != "" {
		n, err := strconv.ParseUint(*version, 10, 64)
		if err != nil {
			return usage{fmt.Errorf("-if: %w", err)}
		}
		in.If = &n
	}
	value, err := io.ReadAll(io.LimitReader(c.in, maxValue+1))
	if err != nil {
		return err
	}
	if len(value) == 0 && !*empty { // as of a command that failed, at the other end of a pipe
		return errors.New("standard input is empty: -empty puts an empty secret")
	}
	if len(value) > maxValue {
		return fmt.Errorf("a secret has at most %d bytes", maxValue)
	}
	if !utf8.Valid(value) {
		return errors.New("a secret is text, in UTF-8: JSON carries nothing else")
	}
	in.Value = string(value)
	var out entry
	if err := c.within(ctx, answerTime, http.MethodPut, secretURL(args[0]), in, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s version %d under key %s\n", line(out.Path), out.Version, line(out.Key))
	return nil
}

func (c cli) get(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("get", flag.ContinueOnError)
	stale := fs.Bool("stale", false, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	path := secretURL(args[0])
	if *stale {
		path += "?stale"
	}
	var out entry
	if err := c.within(ctx, answerTime, http.MethodGet, path, nil, &out); err != nil {
		return err
	}
	_, err = io.WriteString(c.secret, out.Value)
	return err
}

func (c cli) list(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("list", flag.ContinueOnError)
	stale := fs.Bool("stale", false, "")
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err == nil && fs.NArg() == 0 {
		args = append(args, "") // the prefix of all
	}
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	path := "/v1/secrets?prefix=" + url.QueryEscape(args[0])
	if *stale {
		path += "&stale"
	}
	var out []entry
	if err := c.within(ctx, answerTime, http.MethodGet, path, nil, &out); err != nil {
		return err
	}
	for _, e := range out {
		fmt.Fprintf(c.out, "%s version %d under key %s\n", line(e.Path), e.Version, line(e.Key))
	}
	return nil
}

func (c cli) identity(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("identity", flag.ContinueOnError)
	aud, ttl := fs.String("aud", "", ""), fs.String("ttl", "", "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	in := identityRequest{TTL: *ttl}
	if *aud != "" {
		in.Audience = strings.Split(*aud, ",")
	}
	var out struct{ Token string }
	path := "/v1/identities/" + url.PathEscape(args[0])
	if err := c.within(ctx, answerTime, http.MethodPost, path, in, &out); err != nil {
		return err
	}
	fmt.Fprintln(c.out, line(out.Token))
	return nil
}

func (c cli) rotate(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys rotate", flag.ContinueOnError)
	full := fs.Bool("full", false, "")
	compromised := fs.Bool("compromised", false, "")
	publish := fs.String("publish", "", "")
	if _, err := flags(fs, args, 0); err != nil {
		return err
	}
	var out keyStatus
	if err := c.within(ctx, answerTime, http.MethodPost, "/v1/keys", rotateRequest{Full: *full, Compromised: *compromised, Publish: *publish}, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is %s\n", line(out.ID), line(string(out.State)))
	return nil
}

func (c cli) remove(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys remove", flag.ContinueOnError)
	force, now := fs.Bool("force", false, ""), fs.Bool("now", false, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	q := url.Values{}
	if *force {
		q.Set("force", "")
	}
	if *now {
		q.Set("now", "")
	}
	var out struct{ Removed string }
	if err := c.call(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(args[0])+"?"+q.Encode(), nil, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is removed\n", line(out.Removed))
	return nil
}

func (c cli) adopt(ctx context.Context, args []string) error {
	args, err := flags(flag.NewFlagSet("keys adopt", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	var out struct{ Adopted string }
	if err := c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(args[0])+"/adopt", nil, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is adopted\n", line(out.Adopted))
	return nil
}

func (c cli) rewrap(ctx context.Context, args []string) error {
	if _, err := flags(flag.NewFlagSet("keys rewrap", flag.ContinueOnError), args, 0); err != nil {
		return err
	}
	var out struct{ Rewrapped string }
	if err := c.call(ctx, http.MethodPost, "/v1/rewrap", nil, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s has its key files under its present KEKs alone\n", line(out.Rewrapped))
	return nil
}

// status prints what the page shows.
func (c cli) status(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys status", flag.ContinueOnError)
	asJSON := fs.Bool("json", false, "")
	if _, err := flags(fs, args, 0); err != nil {
		return err
	}
	var v view
	if err := c.within(ctx, statusTime, http.MethodGet, "/v1/cluster", nil, &v); err != nil {
		return err
	}
	var err error
	if *asJSON {
		err = json.NewEncoder(c.out).Encode(v)
	} else {
		err = v.print(c.out)
	}
	if n := pressing(v.Problems); err == nil && n > 0 {
		err = finding{errors.New(count(n, "problem"))}
	}
	return err
}
