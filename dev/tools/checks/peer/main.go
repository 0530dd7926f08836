// Peer is both ends of a connection in a test of the network: it serves, and says what it reaches.
//
//	peer serve PORT...    answer every HTTP request on these ports, until told to end
//	peer reach ADDRESS    print how a TCP connection to HOST:PORT ends: open, refused,
//	                      unreachable, timeout
//	peer resolve NAME     print `found`, or `unanswered` when no name server can be asked
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: peer serve PORT... | reach ADDRESS | resolve NAME"))
	}
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2:])
	case "reach":
		fmt.Println(reach(os.Args[2]))
	case "resolve":
		fmt.Println(resolve(os.Args[2]))
	default:
		fail(fmt.Errorf("unknown action %q", os.Args[1]))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "peer:", err)
	os.Exit(1)
}

func serve(ports []string) {
	done, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	answer := http.HandlerFunc(func(to http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(to, "here")
	})
	for _, port := range ports {
		go func() { fail(http.ListenAndServe(":"+port, answer)) }()
	}
	<-done.Done()
}

func reach(address string) string {
	connection, err := net.DialTimeout("tcp", address, patience)
	if err == nil {
		connection.Close()
		return "open"
	}
	var network net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable"
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	}
	fail(err)
	return ""
}

func resolve(name string) string {
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := net.DefaultResolver.LookupHost(limit, name)
	if err == nil {
		return "found"
	}
	var unknown *net.DNSError
	if errors.As(err, &unknown) && unknown.IsNotFound {
		fail(err)
	}
	return "unanswered"
}
