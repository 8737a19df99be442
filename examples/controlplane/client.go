package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.com/keyring/admin"
)

// defaultServer is where init puts the first server.
const defaultServer = "http://127.0.0.1:8001"

// answerTime is for what waits for a leader, which takes 30 seconds at most.
const answerTime = 90 * time.Second

// cli is the command line of users and workloads.
type cli struct {
	client *admin.Client
	in     io.Reader
	out    io.Writer
	warn   io.Writer
	secret io.Writer // what a secret is written to, as it was put unless it is a terminal
}

// call calls the API of a server, which follows it to the leader.
func (c cli) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return c.client.Call(ctx, method, path, in, out)
}

// flags parses those of a command, and wants so many arguments beside them.
func flags(fs *flag.FlagSet, args []string, n int) ([]string, error) {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, asked{flagLines(fs)}
	} else if err != nil {
		return nil, usage{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	if fs.NArg() != n {
		return nil, usage{fmt.Errorf("%s takes %s after its flags, not %d", fs.Name(), arguments(n), fs.NArg())}
	}
	return fs.Args(), nil
}

// asked is flag.ErrHelp for a command, with a line for each of its flags.
type asked struct{ flags string }

func (asked) Error() string     { return flag.ErrHelp.Error() }
func (asked) Is(err error) bool { return err == flag.ErrHelp }

// flagLines are what the flags of a command are, a line each.
func flagLines(fs *flag.FlagSet) string {
	var b strings.Builder
	fs.VisitAll(func(f *flag.Flag) {
		value, is := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "    %-20s %s\n", strings.TrimSpace("-"+f.Name+" "+value), is)
	})
	return b.String()
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
	version, empty := fs.String("if", "", "store it only in place of that `version`; 0 is none"), fs.Bool("empty", false, "store nothing, if standard input has nothing")
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
		return errors.New("standard input is empty: use -empty to store an empty secret")
	}
	if len(value) > maxValue {
		return fmt.Errorf("a secret has at most %d bytes", maxValue)
	}
	if !utf8.Valid(value) {
		return errors.New("a secret must be UTF-8 text, because it is sent as JSON")
	}
	in.Value = string(value)
	var out entry
	if err := c.call(ctx, http.MethodPut, secretURL(args[0]), in, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s version %d under key %s\n", line(out.Path), out.Version, line(out.Key))
	return nil
}

func (c cli) get(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("get", flag.ContinueOnError)
	stale := fs.Bool("stale", false, "ask that server alone, which may be behind")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	path := secretURL(args[0])
	if *stale {
		path += "?stale"
	}
	var out entry
	if err := c.call(ctx, http.MethodGet, path, nil, &out); err != nil {
		return err
	}
	_, err = io.WriteString(c.secret, out.Value)
	return err
}

func (c cli) list(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("list", flag.ContinueOnError)
	stale := fs.Bool("stale", false, "ask that server alone, which may be behind")
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
	if err := c.call(ctx, http.MethodGet, path, nil, &out); err != nil {
		return err
	}
	for _, e := range out {
		fmt.Fprintf(c.out, "%s version %d under key %s\n", line(e.Path), e.Version, line(e.Key))
	}
	return nil
}

func (c cli) identity(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("identity", flag.ContinueOnError)
	aud, ttl := fs.String("aud", "", "the `audiences` of the token, comma-separated; this API without it"), fs.String("ttl", "", "the `time` for which it is valid, as 10m; the longest without it")
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
	if err := c.call(ctx, http.MethodPost, path, in, &out); err != nil {
		return err
	}
	fmt.Fprintln(c.out, line(out.Token))
	return nil
}
