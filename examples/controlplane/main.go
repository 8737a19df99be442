package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends what does not end by itself
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		// Its further lines are indented: none passes for a message of the program's own.
		fmt.Fprintln(printable{os.Stderr}, "controlplane:", strings.ReplaceAll(err.Error(), "\n", "\n    "))
		os.Exit(exitStatus(err))
	}
}

// usage is an error of the one who has called the program.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// finding says that all went well but for what was looked at, which is not good.
type finding struct{ error }

// exitStatus is what the package's documentation says that an error is.
func exitStatus(err error) int {
	switch {
	case errors.As(err, new(usage)):
		return 2
	case errors.As(err, new(finding)):
		return 3
	}
	return 1
}

// run is the program.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("controlplane", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c := cli{in: stdin, out: printable{stdout}, warn: printable{stderr}, terminal: watched(stderr), secret: stdout}
	if isTerminal(stdout) {
		c.secret = c.out
	}
	server := fs.String("server", defaultServer, "")
	err := fs.Parse(args)
	if err == nil {
		c.base, err = serverURL(*server)
	}
	if err != nil {
		return help(c.out, "", usage{err})
	}
	name, rest := fs.Arg(0), fs.Args()[min(1, fs.NArg()):]
	if (name == "keys" || name == "servers") && len(rest) > 0 {
		name, rest = name+" "+rest[0], rest[1:]
	}
	return help(c.out, name, c.run(ctx, name, rest))
}

//go:embed doc.go
var doc string

// usageOf returns the lines of the documentation that say how a command is called, or how all are if it is none.
func usageOf(command string) string {
	var all, own strings.Builder
	for line := range strings.Lines(doc) {
		line, ok := strings.CutPrefix(line, "//\tcontrolplane ")
		if !ok {
			continue
		}
		all.WriteString("controlplane " + line)
		if strings.HasPrefix(strings.TrimPrefix(line, "[-server URL] "), command+" ") {
			own.WriteString("controlplane " + line)
		}
	}
	return cmp.Or(own.String(), all.String())
}

// help tells somebody who has called a command in a wrong way how it is called. It is no error to ask for that.
func help(out io.Writer, command string, err error) error {
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(out, usageOf(command))
	case errors.As(err, new(usage)):
		err = usage{fmt.Errorf("%w\n%s", err, strings.TrimSuffix(usageOf(command), "\n"))}
	}
	return err
}

// run is a command.
func (c cli) run(ctx context.Context, name string, rest []string) error {
	switch name {
	case "init":
		return initialize(rest, c.out)
	case "serve":
		return serveCommand(ctx, rest, c.out, c.warn)
	case "put":
		return c.put(ctx, rest)
	case "get":
		return c.get(ctx, rest)
	case "list":
		return c.list(ctx, rest)
	case "identity":
		return c.identity(ctx, rest)
	case "keys status":
		return c.status(ctx, rest)
	case "keys rotate":
		return c.rotate(ctx, rest)
	case "keys remove":
		return c.remove(ctx, rest)
	case "keys adopt":
		return c.adopt(ctx, rest)
	case "keys rewrap":
		return c.rewrap(ctx, rest)
	case "servers add":
		return c.addServer(ctx, rest)
	case "servers remove":
		return c.removeServer(ctx, rest)
	case "servers token":
		return c.joinToken(ctx, rest)
	case "servers tokens":
		return c.joinTokens(ctx, rest)
	case "servers withdraw":
		return c.withdrawToken(ctx, rest)
	case "backup":
		return c.backup(ctx, rest)
	case "verify":
		return c.verify(ctx, rest)
	case "restore":
		return c.restore(ctx, rest)
	case "recover":
		return c.recover(ctx, rest)
	case "inspect":
		return c.inspect(ctx, rest)
	case "keys -h", "keys -help", "keys --help", "servers -h", "servers -help", "servers --help":
		return flag.ErrHelp
	}
	return usage{fmt.Errorf("there is no command %q", name)}
}
